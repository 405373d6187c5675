//! The whole demo year beside what the disk alone takes for it.

use std::{path::Path, process::Command};

use crate::measure;

pub(crate) fn run(demo: &Path) -> anyhow::Result<()> {
    if demo.exists() {
        std::fs::remove_dir_all(demo)?;
    }
    let headworks = measure::headworks()?;
    let (cost, out) = measure::run(Command::new(&headworks).args(["--json", "demo", "--no-serve", "--dir"]).arg(demo))?;
    let summary: serde_json::Value = serde_json::from_str(&out)?;
    let runs = summary["success"].as_u64().unwrap_or(0);
    let bytes = summary["bytes"].as_u64().unwrap_or(0);
    let millis = summary["took_ms"].as_u64().unwrap_or(0);
    let publishes = usize::try_from(runs)?;
    let average = usize::try_from(bytes / runs.max(1))?;
    let floor = measure::fsync_floor(&demo.with_extension("floor"), publishes, average, 8, 4)?;
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let seconds = millis as f64 / 1000.0;
    println!(
        "{runs} runs, each with its publish: {seconds:.1} s (with filling the production database: {:.1} s)",
        cost.wall.as_secs_f64()
    );
    println!("CPU {:.1} s, most resident memory {} MB (goal 500 MB)", cost.cpu.as_secs_f64(), cost.rss / 1_000_000);
    println!("the disk alone, files of the same size, 8 writers, a log page every 4: {:.1} s", floor.as_secs_f64());
    println!("goal: at most 60 s or {:.1} s, whichever is larger", floor.as_secs_f64() * 2.0);
    Ok(())
}
