//! Tasks that a broker must not live without. tokio drops a task that panics and tells nobody who does not wait for it: what is left
//! is a broker that answers, and (say) takes part in no election any more. A process that ends is what the other brokers, and whoever
//! restarts it, can deal with. Not where the task is one group's: what panics because of that group's log does so on each of its brokers,
//! and must not end them all; such a task begins again.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tracing::Instrument;

/// The pause before a group's task begins again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs `task`; if it panics, `give_up` is told which it was and what it said. To be spawned in the task's place. Its log lines are in the
/// span that this is called in: they say which broker's they are.
pub fn vital(
    name: &'static str,
    give_up: impl FnOnce(&str),
    task: impl Future<Output = ()>,
) -> impl Future<Output = ()> {
    let run = async move {
        if let Err(why) = caught(name, task).await {
            give_up(&why);
        }
    };
    run.in_current_span()
}

/// Runs a group's task, and again for as long as it panics.
pub(crate) async fn insist<F: Future<Output = ()>>(name: &'static str, mut task: impl FnMut() -> F) {
    while let Err(why) = caught(name, task()).await {
        tracing::error!(why, "it begins again");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn caught(name: &'static str, task: impl Future<Output = ()>) -> Result<(), String> {
    let ended = AssertUnwindSafe(task).catch_unwind().await;
    ended.map_err(|panic| format!("the task \"{name}\" panicked: {}", message(&*panic)))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_and_an_end_is_not() {
        let mut told = Vec::new();
        vital("first", |why| told.push(why.to_owned()), async {}).await;
        let number = std::hint::black_box(3);
        vital("second", |why| told.push(why.to_owned()), async move { panic!("number {number}") }).await;
        vital("third", |why| told.push(why.to_owned()), async { panic!("plainly") }).await;
        assert_eq!(told, ["the task \"second\" panicked: number 3", "the task \"third\" panicked: plainly"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_groups_task_begins_again_until_it_ends() {
        let runs = Cell::new(0);
        let task = async || {
            runs.set(runs.get() + 1);
            assert!(runs.get() == 3, "not yet");
        };
        insist("task", task).await;
        assert_eq!(runs.get(), 3);
    }
}
