//! The disk alone: what a durable append costs here, without any of Pontoon.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::RawArgs;
use super::report::{Report, histogram};
use crate::cli::Failure;

/// Removes the file when the measurement ends, however it ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) fn run(args: &RawArgs) -> Result<Report, Failure> {
    let path = args.dir.join(format!("pontoon-raw-{:016x}", rand::random::<u64>()));
    let told = |error: std::io::Error| Failure::Failed(format!("{}: {error}", path.display()));
    let scratch = Scratch(path.clone());
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&scratch.0).map_err(told)?;
    let ring_bytes = args.prewritten_mib << 20;
    prewrite(&file, ring_bytes).map_err(told)?;
    let block: Vec<u8> = (0..args.bytes).map(|_| rand::random()).collect();
    let mut latencies = histogram();
    let mut position = 0;
    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    while Instant::now() < deadline {
        if ring_bytes > 0 && position + block.len() as u64 > ring_bytes {
            position = 0;
        }
        let begun = Instant::now();
        file.write_all_at(&block, position).and_then(|()| file.sync_data()).map_err(told)?;
        latencies.saturating_record(begun.elapsed().as_micros() as u64);
        position += block.len() as u64;
    }
    let mut report = Report::new("raw");
    report.set("bytes", args.bytes);
    report.set("prewritten_mib", args.prewritten_mib);
    report.rate(latencies.len(), latencies.len() * args.bytes as u64, started.elapsed());
    report.latencies(&latencies);
    Ok(report)
}

fn prewrite(file: &File, bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 20];
    for block in 0..bytes >> 20 {
        file.write_all_at(&zeros, block << 20)?;
    }
    file.sync_all()
}
