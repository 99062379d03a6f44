//! Whether this machine can run brokers on hosts of their own: root, the tools, and what the kernel must be able to do.
//!
//! Everything that is missing is told at once, with what to install. It tries what it asks for (namespaces, a file system on a loop
//! device: a container may have the device and not be let), and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Stdio};

/// A tool, and the Debian package it comes from.
struct Tool {
    name: &'static str,
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { name: "unshare", package: "util-linux" },
    Tool { name: "nsenter", package: "util-linux" },
    Tool { name: "mount", package: "mount" },
    Tool { name: "umount", package: "mount" },
    Tool { name: "mkfs.ext4", package: "e2fsprogs" },
    Tool { name: "ip", package: "iproute2" },
    Tool { name: "nft", package: "nftables" },
];

/// `strace`, for slow and failing fsyncs.
const STRACE: Tool = Tool { name: "strace", package: "strace" };

/// Where Debian keeps the library that lies about the time.
const FAKETIME: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

/// What a run needs beyond the cluster itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Faults in single system calls.
    pub strace: bool,
    /// Lying clocks.
    pub faketime: bool,
    /// Packets that take their time.
    pub tun: bool,
}

/// The library that lies about the time.
pub fn faketime() -> Option<&'static str> {
    FAKETIME.iter().copied().find(|path| Path::new(path).exists())
}

/// What is missing, sentence by sentence; empty if the machine will do.
pub fn missing(needs: Needs) -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return vec!["root is needed (network namespaces, loop mounts): run it with sudo".to_owned()];
    }
    let mut found: Vec<String> = Vec::new();
    let mut packages: Vec<&str> = Vec::new();
    let mut tools: Vec<&Tool> = TOOLS.iter().collect();
    tools.extend(needs.strace.then_some(&STRACE));
    for tool in tools.into_iter().filter(|tool| !in_path(tool.name)) {
        found.push(format!("{} is not installed", tool.name));
        packages.push(tool.package);
    }
    if needs.faketime && faketime().is_none() {
        found.push("libfaketime is not installed (clock faults)".to_owned());
        packages.push("libfaketime");
    }
    if !packages.is_empty() {
        packages.sort_unstable();
        packages.dedup();
        found.push(format!("install: apt-get install -y {}", packages.join(" ")));
        return found;
    }
    if needs.tun && !Path::new("/dev/net/tun").exists() {
        found.push("there is no /dev/net/tun (delayed packets): the kernel needs CONFIG_TUN".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        found.push("there are no loop devices: the kernel needs CONFIG_BLK_DEV_LOOP".to_owned());
    }
    if let Err(why) = try_in_namespaces(NETWORK) {
        found.push(format!("namespaces do not work here: {why}"));
    } else if let Err(why) = try_in_namespaces(DISK) {
        found.push(format!("the kernel does not let ext4 be mounted over a loop device here: {why}"));
    }
    found
}

fn in_path(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(name).is_file())
}

/// What a run stands on: a bridge, a pair of interfaces, a packet filter.
const NETWORK: &str = "mkdir /run/netns && ip netns add try \
                       && ip link add try0 type bridge && ip link add try1 type veth peer name eth0 netns try \
                       && ip netns exec try nft add table ip try";
/// And a disk.
const DISK: &str = "mkdir /run/try && truncate -s 16M /run/try.ext4 && mkfs.ext4 -q -F /run/try.ext4 \
                    && mount -t ext4 -o loop /run/try.ext4 /run/try && touch /run/try/file && umount /run/try";

/// Makes it in namespaces of its own, with an empty /run, which the kernel drops with all that is in them.
fn try_in_namespaces(script: &str) -> Result<(), String> {
    let script = format!("mount -t tmpfs none /run && {script}");
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
        .args(["sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_looked_for_where_they_are() {
        assert!(in_path("sh"));
        assert!(!in_path("no-such-tool-anywhere"));
    }

    #[test]
    fn what_cannot_be_made_is_told_in_the_words_of_who_could_not() {
        // Without root not even the namespaces come about.
        let why = try_in_namespaces("echo 'no such disk' >&2 && false").unwrap_err();
        assert!(why.contains("no such disk") || why.contains("not permitted"), "{why}");
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        for sentence in missing(Needs { strace: true, faketime: true, tun: true }) {
            let advice = ["root", "install", "kernel", "namespaces"];
            assert!(advice.iter().any(|word| sentence.contains(word)), "{sentence}");
        }
    }
}
