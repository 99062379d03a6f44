//! The calls that need `unsafe`: two ioctls that no safe library offers, and watching a descriptor. This is the only such file of the
//! crate.

#![allow(unsafe_code, reason = "each says what it relies on")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::ioctl::{self, Setter};
use tokio::io::unix::AsyncFd;

/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, u32)`.
const SHUTDOWN: ioctl::Opcode = 0x8004_587d;
/// Its flag: do not even write the file system's journal.
const NO_LOG_FLUSH: u32 = 2;
/// `TUNSETIFF`, `_IOW('T', 202, int)`.
const TUN_SET_INTERFACE: ioctl::Opcode = 0x4004_54ca;
/// IP packets, without a header of the device's own.
const TUN_PACKETS: i16 = 0x0001 | 0x1000;

/// Cuts the power of a file system: nothing that was not synced reaches its disk any more, and every later write fails.
pub fn shut_down(mount_point: &Path) -> io::Result<()> {
    let root = File::open(mount_point)?;
    // SAFETY: the opcode reads one u32, which `Setter` passes by pointer and keeps alive over the call.
    unsafe { ioctl::ioctl(root.as_fd(), Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }?;
    Ok(())
}

/// `struct ifreq` as far as TUNSETIFF reads it: a name of 16 bytes, then the flags, then padding to 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    padding: [u8; 22],
}

/// Opens a device that hands IP packets to this process, in the calling thread's network namespace.
pub fn open_tun(name: &str) -> io::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = InterfaceRequest { name: [0; 16], flags: TUN_PACKETS, padding: [0; 22] };
    let bytes = name.as_bytes();
    // The last byte stays zero: the kernel reads a C string.
    let room = request.name.get_mut(..bytes.len()).filter(|_| bytes.len() < 16);
    room.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?.copy_from_slice(bytes);
    // SAFETY: the opcode reads one `struct ifreq`, whose layout this is and which outlives the call.
    unsafe { ioctl::ioctl(device.as_fd(), Setter::<TUN_SET_INTERFACE, InterfaceRequest>::new(request)) }?;
    Ok(device)
}

/// Lets the runtime watch a device. It must not block.
pub fn watch(device: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, keeps it open and never changes it; nothing takes it out.
    unsafe { AsyncFd::register(device) }.map_err(io::Error::from)
}
