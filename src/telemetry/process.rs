//! What the operating system says of this process: memory and file descriptors. Read when somebody asks.

use std::sync::OnceLock;

use metrics::{Gauge, gauge};
use pontoon_raft::instruments::Instrument;

const MEMORY: Instrument = Instrument {
    kind: "gauge",
    name: "pontoon_process_resident_memory_bytes",
    help: "Memory of the process that is resident.",
};
const FILES: Instrument =
    Instrument { kind: "gauge", name: "pontoon_process_open_fds", help: "Open file descriptors of the process." };
const FILES_MAX: Instrument = Instrument {
    kind: "gauge",
    name: "pontoon_process_max_fds",
    help: "File descriptors that the process may open (RLIMIT_NOFILE).",
};
const BUILD: Instrument =
    Instrument { kind: "gauge", name: "pontoon_build_info", help: "1, with the version as its label." };

/// Whatever is shown of the process. Of all brokers in it together, so without their label.
pub fn instruments() -> impl Iterator<Item = Instrument> {
    [MEMORY, FILES, FILES_MAX, BUILD].into_iter()
}

struct Process {
    memory: Gauge,
    files: Gauge,
    files_max: Gauge,
}

/// Brings the gauges up to date. What cannot be read stays as it was.
pub fn observe() {
    static PROCESS: OnceLock<Process> = OnceLock::new();
    let process = PROCESS.get_or_init(|| {
        instruments().for_each(|instrument| instrument.describe());
        gauge!(BUILD.name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Process { memory: gauge!(MEMORY.name), files: gauge!(FILES.name), files_max: gauge!(FILES_MAX.name) }
    });
    if let Some(bytes) = resident_bytes() {
        process.memory.set(bytes as f64);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // The one that reads the folder is among them.
        process.files.set(entries.count().saturating_sub(1) as f64);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    process.files_max.set(limit.current.map_or(f64::INFINITY, |files| files as f64));
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_memory() {
        assert!(super::resident_bytes().unwrap() > 1 << 20);
    }
}
