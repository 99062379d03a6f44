//! Who is let in: accepting what other brokers dial, and shaking hands. What is said then is [`super::server`]'s.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::handshake::{ConnectionKind, HANDSHAKE_BYTES, Hello, PROTOCOL_VERSION, Turned, Welcome};
use super::server::serve;
use super::{Listener, Shared, Stream};

/// How long a new connection may take to say who it is.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// Connections that may be shaking hands.
const HANDSHAKES_MAX: usize = 64;
/// Connections that may be open.
const CONNECTIONS_MAX: usize = 1024;
/// Pause after a failed accept (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the task is ended.
pub(super) async fn accept_loop(shared: Arc<Shared>, listener: Box<dyn Listener>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Nobody is kept waiting for a place: a dialler tries again.
        let Ok(handshaking) = handshakes.clone().try_acquire_owned() else { continue };
        let place = connections.clone().try_acquire_owned();
        let shared = shared.clone();
        let accepted = async move {
            let turned = place.is_err().then_some(Turned::Busy);
            let welcomed = tokio::time::timeout(HANDSHAKE_MAX, shake_hands(&shared, stream, turned)).await;
            drop(handshaking);
            if let Ok(Some((stream, hello))) = welcomed {
                let span = tracing::info_span!(
                    parent: None,
                    "accepted",
                    broker = shared.broker.0,
                    peer = hello.broker.0,
                    connection = hello.kind.name()
                );
                serve(shared, stream, hello).instrument(span).await;
            }
            drop(place);
        };
        tokio::spawn(accepted.in_current_span());
    }
}

/// The acceptor's half of the handshake; `None` if the dialler was turned away.
async fn shake_hands(
    shared: &Shared,
    mut stream: Box<dyn Stream>,
    turned: Option<Turned>,
) -> Option<(Box<dyn Stream>, Hello)> {
    let mut bytes = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut bytes).await.ok()?;
    let hello = match Hello::decode(&bytes) {
        Ok(hello) => hello,
        Err(error) => {
            tracing::warn!(%error, "turned a connection away");
            return None;
        }
    };
    let verdict = turned.or(match &hello {
        Ok(hello) => judge(shared, hello),
        Err(_) => Some(Turned::Version),
    });
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        turned: verdict,
        broker: shared.broker,
        cluster: *shared.cluster.borrow(),
        incarnation: shared.incarnation,
    };
    stream.write_all(&welcome.encode()).await.ok()?;
    stream.flush().await.ok()?;
    match (verdict, hello) {
        (None, Ok(hello)) => Some((stream, hello)),
        (verdict, hello) => {
            log_turned(verdict, &hello);
            if let (Some(Turned::Taken), Ok(hello)) = (verdict, &hello) {
                // It may be that one's successor, at the same address: then it is seen there.
                shared.redial(hello.broker);
            }
            // Read until the dialler closes, so that it sees the verdict and not a reset.
            let _ = stream.read(&mut bytes).await;
            None
        }
    }
}

/// Says who was turned away, and why. `Err`: the version that it speaks.
fn log_turned(verdict: Option<Turned>, hello: &Result<Hello, u16>) {
    let why = verdict.map_or("", Turned::of_dialler);
    match hello {
        Err(version) => tracing::warn!(version, ours = PROTOCOL_VERSION, why, "turned a broker away"),
        Ok(Hello { broker, target, cluster, .. }) => {
            let (peer, target) = (broker.0, target.map(|target| target.0));
            let cluster = cluster.map(|cluster| format!("{:032x}", cluster.0));
            // It comes again, when its cluster is ours, too.
            match verdict {
                Some(Turned::NoCluster) => tracing::debug!(peer, target, cluster, why, "turned a broker away"),
                _ => tracing::warn!(peer, target, cluster, why, "turned a broker away"),
            }
        }
    }
}

fn judge(shared: &Shared, hello: &Hello) -> Option<Turned> {
    let cluster = *shared.cluster.borrow();
    if hello.target.is_some_and(|target| target != shared.broker) {
        return Some(Turned::WrongBroker);
    }
    if hello.cluster.is_some_and(|theirs| shared.superseded.lock().contains(&theirs)) {
        return Some(Turned::Superseded);
    }
    if cluster.is_some() && hello.cluster.is_some() && cluster != hello.cluster {
        return Some(Turned::ForeignCluster);
    }
    match hello.kind {
        ConnectionKind::Call => None,
        _ if hello.broker == shared.broker => Some(Turned::SameBroker),
        ConnectionKind::Data if cluster.is_none() || hello.cluster.is_none() => Some(Turned::NoCluster),
        _ if shared.is_taken(hello.broker, hello.incarnation) => Some(Turned::Taken),
        ConnectionKind::Data | ConnectionKind::Control => None,
    }
}
