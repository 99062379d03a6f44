//! Tasks that a broker must not live without. tokio drops a task that panics and tells nobody who does not wait for it: what is left
//! is a broker that answers, and (say) takes part in no election any more. A process that ends is what the other brokers, and whoever
//! restarts it, can deal with.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

/// Runs `task`; if it panics, `give_up` is told which it was and what it said. To be spawned in the task's place.
pub async fn vital(name: &'static str, give_up: impl FnOnce(&str), task: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        give_up(&format!("the task \"{name}\" panicked: {}", message(&*panic)));
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
}

#[cfg(test)]
mod tests {
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
}
