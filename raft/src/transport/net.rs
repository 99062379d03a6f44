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

/// turmoil's network, for hosts of a simulation. Addresses are turmoil host names with a port.
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
