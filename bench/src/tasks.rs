//! The orchestrator beside Airflow 3.3: what a step costs, how soon it begins, what standing idle takes, how soon a death is
//! noticed. Airflow's figures are those of `bench/airflow/run.py` on the same machine, quiet and busy.

mod served;
pub(crate) mod sustained;

use std::{path::Path, process::Command, time::Duration};

use crate::measure::{self, ms, percentile};

const RUNS: usize = 5;

pub(crate) fn run(scratch: &Path) -> anyhow::Result<()> {
    println!("| what | ours | at most | Airflow 3.3 |\n|---|---|---|---|");
    let headworks = measure::headworks()?;
    let project = scratch.join("tasks");
    measure::run(Command::new(&headworks).arg("init").arg(&project))?;
    let shell = "type: shell, command: 'true'";
    let sql = "type: sql, sql: 'select 1 as n'";
    const FAN: &str = "22-28 s quiet, 53-116 s busy, 27-43 CPU-s";
    const CHAIN: &str = "57 s quiet, 71-106 s busy";
    for (what, goal, airflow, text) in [
        ("100 independent tasks in process (queries)", "1 s, 0.5 CPU-s", FAN, fan(sql)),
        ("100 independent tasks as child processes", "3 s", FAN, fan(shell)),
        ("chain of 50 in process", "1 s", CHAIN, chain(sql)),
        ("chain of 50 child processes", "1 s", CHAIN, chain(shell)),
    ] {
        std::fs::write(project.join("jobs/tasks.yml"), text)?;
        let mut walls = Vec::new();
        let mut cpu = Duration::ZERO;
        for day in 1..=RUNS {
            let ds = format!("2026-01-{day:02}");
            let mut command = Command::new(&headworks);
            command.arg("-C").arg(&project).args(["run", "tasks", "--reprocess", "--ds", &ds]);
            let (cost, _) = measure::run(&mut command)?;
            walls.push(cost.wall);
            cpu += cost.cpu;
        }
        let cpu = cpu / u32::try_from(RUNS)?;
        row(what, &format!("p50 {}, {:.2} CPU-s", ms(percentile(&mut walls, 0.5)), cpu.as_secs_f64()), goal, airflow);
    }
    served::run(scratch)?;
    let hundred = "for n in $(seq 100); do /bin/sh -c true; done";
    let (cost, _) = measure::run(Command::new("/bin/sh").args(["-c", hundred]))?;
    println!("\nreference: 100 times /bin/sh -c true by a shell: {}, CPU {}", ms(cost.wall), ms(cost.cpu));
    Ok(())
}

/// One line of the table.
fn row(what: &str, ours: &str, goal: &str, airflow: &str) {
    println!("| {what} (load {}) | {ours} | {goal} | {airflow} |", measure::load());
}

fn fan(task: &str) -> String {
    format!("tasks:\n  t: {{{task}, each: '{{{{ range(100) | list }}}}'}}\n")
}

fn chain(task: &str) -> String {
    let mut text = "tasks:\n".to_owned();
    for n in 0..50 {
        let after = if n == 0 { String::new() } else { format!(", after: [t{}]", n - 1) };
        text += &format!("  t{n}: {{{task}{after}}}\n");
    }
    text
}
