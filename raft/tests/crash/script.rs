//! A life in which everything happens: see the labels.

use super::driver::{APPLIED_GROUP, Append, Crashed, Driver, Key};

const A: Key = (1, 11);
const B: Key = (2, 12);
const C: Key = (3, 13);
const DOOMED: Key = (4, 14);
const CATALOG: Key = (APPLIED_GROUP, 19);
const FRESH: Key = (5, 15);
const LATE: Key = (6, 16);
const GONE: Key = (7, 17);

/// Lives it.
pub(crate) async fn run(driver: &mut Driver) -> Result<(), Crashed> {
    driver.label("open");
    driver.open().await?;
    driver.label("create");
    for key in [A, B, C, DOOMED, CATALOG] {
        driver.create(key).await?;
        driver.vote(key, 1).await?;
    }
    driver.label("journal write");
    for key in [A, B, C, DOOMED, CATALOG] {
        driver.write(key, Append::Membership).await?;
        driver.write(key, Append::Blank).await?;
    }
    together(driver, &[100, 201, 30]).await?;
    driver.label("bypass");
    driver.write(A, Append::Proposals(1, &[7000])).await?;
    let large = driver.append(A, Append::Proposals(1, &[3000, 4000])).await?;
    let behind = driver.append(A, Append::Proposals(2, &[40])).await?;
    let others = driver.append(B, Append::Proposals(1, &[50, 61, 70])).await?;
    driver.wait([others, large, behind]).await?;
    driver.label("roll");
    for _ in 0..6 {
        together(driver, &[900, 400]).await?;
    }
    driver.label("segment write");
    driver.rest(1).await;
    driver.label("checkpoint");
    driver.store().checkpoint().await?;
    driver.label("journal write");
    together(driver, &[300, 10, 21]).await?;
    driver.label("truncate");
    truncate(driver).await?;
    driver.label("vote");
    for key in [A, B, CATALOG] {
        driver.vote(key, 3).await?;
        driver.write(key, Append::Blank).await?;
    }
    driver.label("purge");
    purge(driver).await?;
    driver.label("checkpoint");
    driver.store().checkpoint().await?;
    driver.label("log start");
    log_start(driver).await?;
    driver.label("checkpoint");
    driver.store().checkpoint().await?;
    driver.label("install");
    install(driver).await?;
    driver.label("delete");
    driver.delete(DOOMED).await?;
    driver.write(A, Append::Proposals(1, &[20])).await?;
    driver.label("checkpoint");
    driver.store().checkpoint().await?;
    driver.label("close");
    driver.close().await?;
    driver.label("open");
    driver.open().await?;
    driver.label("second life");
    second_life(driver).await?;
    driver.label("close");
    driver.close().await
}

/// Appends to several groups at once, two of one group behind each other.
async fn together(driver: &mut Driver, sizes: &[usize]) -> Result<(), Crashed> {
    let mut pending = Vec::new();
    for key in [A, B, C, CATALOG] {
        pending.push(driver.append(key, Append::Proposals(1, sizes)).await?);
        pending.push(driver.append(key, Append::Proposals(2, &sizes[..1])).await?);
    }
    driver.wait(pending).await
}

/// Truncations: above the checkpoint, across it, of several segments, and of what is not durable yet.
async fn truncate(driver: &mut Driver) -> Result<(), Crashed> {
    driver.vote(B, 2).await?;
    let last = driver.last(B);
    driver.truncate(B, last - 1).await?;
    driver.write(B, Append::Proposals(3, &[80, 90])).await?;
    driver.truncate(B, 12).await?;
    driver.write(B, Append::Proposals(3, &[33])).await?;
    // C's truncation is followed by more at once; nobody waits in between.
    driver.vote(C, 2).await?;
    let lost = driver.append(C, Append::Proposals(4, &[55, 55])).await?;
    let last = driver.last(C);
    driver.truncate(C, last - 3).await?;
    let kept = driver.append(C, Append::Proposals(4, &[66])).await?;
    driver.truncate(C, 5).await?;
    let after = driver.append(C, Append::Proposals(4, &[3000, 3500, 77])).await?;
    driver.wait([lost, kept, after]).await?;
    driver.rest(1).await;
    driver.write(C, Append::Blank).await
}

/// Boundary snapshots and applied ones, with purges of whole segments, inside a segment, and of everything.
async fn purge(driver: &mut Driver) -> Result<(), Crashed> {
    let last = driver.last(A);
    driver.apply(A, last - 2).await?;
    driver.purge(A, last - 8).await?;
    driver.write(A, Append::Proposals(1, &[500])).await?;
    driver.apply(CATALOG, 9).await?;
    driver.purge(CATALOG, 0).await?;
    driver.write(CATALOG, Append::Proposals(1, &[40, 50])).await?;
    driver.rest(1).await;
    let last = driver.last(CATALOG);
    driver.apply(CATALOG, last).await?;
    driver.purge(CATALOG, 0).await?;
    driver.write(CATALOG, Append::Proposals(1, &[60])).await?;
    // Purge what no checkpoint has seen: every entry of it is above.
    for _ in 0..5 {
        driver.write(C, Append::Proposals(5, &[1500, 1500])).await?;
    }
    let last = driver.last(C);
    driver.apply(C, last).await?;
    driver.purge(C, last - 1).await?;
    driver.write(C, Append::Proposals(5, &[44])).await
}

/// The log start moved within the log, beyond all of it, and in an entry that is truncated away.
async fn log_start(driver: &mut Driver) -> Result<(), Crashed> {
    for _ in 0..4 {
        driver.write(A, Append::Proposals(1, &[900, 700])).await?;
    }
    let end = driver.log_end(A);
    driver.write(A, Append::LogStart(end - 3)).await?;
    driver.let_go(A).await?;
    driver.write(A, Append::Proposals(1, &[300])).await?;
    driver.create(GONE).await?;
    driver.write(GONE, Append::Membership).await?;
    driver.write(GONE, Append::Proposals(1, &[900, 700])).await?;
    let end = driver.log_end(GONE);
    driver.write(GONE, Append::LogStart(end)).await?;
    driver.let_go(GONE).await?;
    driver.rest(1).await;
    driver.write(GONE, Append::Proposals(1, &[120])).await?;
    let before = driver.last(C);
    let end = driver.log_end(C);
    let lost = driver.append(C, Append::LogStart(end)).await?;
    driver.truncate(C, before).await?;
    let kept = driver.append(C, Append::Proposals(5, &[45])).await?;
    driver.wait([lost, kept]).await
}

/// Snapshots installed on an empty replica, and on one whose log ends before the snapshot does.
async fn install(driver: &mut Driver) -> Result<(), Crashed> {
    driver.create(FRESH).await?;
    driver.vote(FRESH, 3).await?;
    driver.install(A, FRESH).await?;
    driver.write(FRESH, Append::Proposals(1, &[700, 20])).await?;
    driver.write(FRESH, Append::Proposals(1, &[3900, 20])).await?;
    driver.install(C, DOOMED).await?;
    driver.write(DOOMED, Append::Proposals(5, &[25])).await?;
    driver.create((APPLIED_GROUP, 20)).await?;
    driver.vote((APPLIED_GROUP, 20), 3).await?;
    driver.write((APPLIED_GROUP, 20), Append::Membership).await?;
    driver.install(CATALOG, (APPLIED_GROUP, 20)).await?;
    driver.write((APPLIED_GROUP, 20), Append::Proposals(1, &[88])).await
}

/// After a restart: going on in old segments, truncating below the checkpoint, purging, a replica that lives between two
/// checkpoints only.
async fn second_life(driver: &mut Driver) -> Result<(), Crashed> {
    together(driver, &[150]).await?;
    driver.write(A, Append::Proposals(1, &[6500])).await?;
    driver.vote(B, 5).await?;
    driver.truncate(B, 9).await?;
    driver.write(B, Append::Proposals(1, &[2000, 2500])).await?;
    driver.create(LATE).await?;
    driver.write(LATE, Append::Blank).await?;
    driver.delete(LATE).await?;
    driver.store().checkpoint().await?;
    let last = driver.last(B);
    driver.apply(B, last).await?;
    driver.purge(B, last).await?;
    driver.write(B, Append::Proposals(1, &[20])).await?;
    driver.rest(1).await;
    Ok(())
}
