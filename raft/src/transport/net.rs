//! Networks: TCP by tokio, and the simulated one of turmoil.
//!
//! A connection is a byte stream; nothing here knows what it carries.

use std::io;

use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};

use super::{Listener, Network, Stream};

/// The operating system's TCP, without Nagle's delay.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNetwork;

impl Network for TcpNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?.to_string();
            Ok(Box::new(Tcp { listener, address }) as Box<dyn Listener>)
        })
    }
}

struct Tcp {
    listener: TcpListener,
    address: String,
}

impl Listener for Tcp {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

/// turmoil's network, for hosts of a simulation. A host listens on `0.0.0.0:port` and is dialled by its name.
#[cfg(any(test, feature = "simulation"))]
#[derive(Clone, Copy, Debug, Default)]
pub struct TurmoilNetwork;

#[cfg(any(test, feature = "simulation"))]
impl Network for TurmoilNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move { Ok(Box::new(turmoil::net::TcpStream::connect(address).await?) as Box<dyn Stream>) })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = turmoil::net::TcpListener::bind(address).await?;
            let address = listener.local_addr()?.to_string();
            Ok(Box::new(Turmoil { listener, address }) as Box<dyn Listener>)
        })
    }
}

#[cfg(any(test, feature = "simulation"))]
struct Turmoil {
    listener: turmoil::net::TcpListener,
    address: String,
}

#[cfg(any(test, feature = "simulation"))]
impl Listener for Turmoil {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move { Ok(Box::new(self.listener.accept().await?.0) as Box<dyn Stream>) })
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::config::RaftConfig;
    use crate::transport::{Caller, Liveness, PeerService, Transport, TransportIdentity};
    use crate::types::{BrokerId, ClusterId};

    struct Echo;

    impl PeerService for Echo {
        fn call(&self, _from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
            Box::pin(async move { Ok(body) })
        }
    }

    async fn start(network: Arc<dyn Network>, listen: &str, broker: u32) -> Transport {
        let identity = TransportIdentity { broker: BrokerId(broker), cluster: Some(ClusterId(1)) };
        Transport::start(network, listen, identity, RaftConfig::default(), Arc::new(Echo)).await.unwrap()
    }

    async fn until(transport: &Transport, broker: u32, liveness: Liveness) {
        let reached = async {
            while transport.liveness(BrokerId(broker)) != liveness {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("liveness as awaited");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_brokers_talk_over_tcp_and_notice_the_other_s_end() {
        let a = start(Arc::new(TcpNetwork), "127.0.0.1:0", 1).await;
        let b = start(Arc::new(TcpNetwork), "127.0.0.1:0", 2).await;
        a.set_peer(BrokerId(2), b.local_address());
        b.set_peer(BrokerId(1), a.local_address());
        until(&a, 2, Liveness::Alive).await;
        let body = Bytes::from(vec![9; 3 << 20]);
        let answer = a.call(BrokerId(2), body.clone(), Duration::from_secs(10)).await.unwrap();
        assert_eq!(answer, body);
        b.shutdown().await;
        until(&a, 2, Liveness::Dead).await;
        a.shutdown().await;
    }

    #[test]
    fn two_brokers_talk_over_turmoil_and_see_a_crash_and_a_return() {
        for seed in 0..16 {
            talk_crash_and_return(seed);
        }
    }

    fn talk_crash_and_return(seed: u64) {
        let mut sim = turmoil::Builder::new().rng_seed(seed).simulation_duration(Duration::from_secs(60)).build();
        sim.host("b", || async {
            let b = start(Arc::new(TurmoilNetwork), "0.0.0.0:9000", 2).await;
            b.set_peer(BrokerId(1), "a:9000".into());
            std::future::pending().await
        });
        let (done, mut called) = tokio::sync::mpsc::unbounded_channel();
        sim.client("a", async move {
            let a = start(Arc::new(TurmoilNetwork), "0.0.0.0:9000", 1).await;
            a.set_peer(BrokerId(2), "b:9000".into());
            for liveness in [Liveness::Alive, Liveness::Dead, Liveness::Alive] {
                until(&a, 2, liveness).await;
                let answer = a.call(BrokerId(2), Bytes::from_static(b"x"), Duration::from_secs(1)).await;
                assert_eq!(answer.is_ok(), liveness == Liveness::Alive, "seed {seed}: {answer:?}");
                done.send(liveness)?;
            }
            Ok(())
        });
        while called.try_recv().is_err() {
            sim.step().unwrap();
        }
        sim.crash("b");
        while called.try_recv().is_err() {
            sim.step().unwrap();
        }
        sim.bounce("b");
        sim.run().unwrap();
    }
}
