//! Jobs of tasks: what a step costs, as a child process and in the process itself.

use std::{path::Path, process::Command};

use crate::measure::{self, ms, percentile};

const RUNS: usize = 5;

pub(crate) fn run(scratch: &Path) -> anyhow::Result<()> {
    let headworks = measure::headworks()?;
    let project = scratch.join("tasks");
    measure::run(Command::new(&headworks).arg("init").arg(&project))?;
    let shell = "type: shell, command: 'true'";
    let sql = "type: sql, sql: 'select 1 as n'";
    for (what, goal, text) in [
        ("100 commands at once", "3 s", fan(shell)),
        ("100 queries at once", "1 s", fan(sql)),
        ("50 commands, one after the other", "1 s", chain(shell)),
        ("50 queries, one after the other", "1 s", chain(sql)),
    ] {
        std::fs::write(project.join("jobs/tasks.yml"), text)?;
        let mut walls = Vec::new();
        let mut cpu = std::time::Duration::ZERO;
        for day in 1..=RUNS {
            let ds = format!("2026-01-{day:02}");
            let mut command = Command::new(&headworks);
            command.arg("-C").arg(&project).args(["run", "tasks", "--reprocess", "--ds", &ds]);
            let (cost, _) = measure::run(&mut command)?;
            walls.push(cost.wall);
            cpu += cost.cpu;
        }
        let cpu = cpu / u32::try_from(RUNS)?;
        println!("{what}: p50 {}, CPU {} (goal {goal})", ms(percentile(&mut walls, 0.5)), ms(cpu));
    }
    let hundred = "for n in $(seq 100); do /bin/sh -c true; done";
    let (cost, _) = measure::run(Command::new("/bin/sh").args(["-c", hundred]))?;
    println!("reference: 100 times /bin/sh -c true by a shell: {}, CPU {}", ms(cost.wall), ms(cost.cpu));
    Ok(())
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
