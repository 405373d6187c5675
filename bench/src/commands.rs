//! Commands from cold: the program starts anew each time.

use std::{path::Path, process::Command, time::Duration};

use crate::measure::{self, ms, percentile};

const STARTS: usize = 11;
const JOBS: usize = 1_000;

pub(crate) fn run(scratch: &Path) -> anyhow::Result<()> {
    let headworks = measure::headworks()?;
    let project = scratch.join("commands");
    measure::run(Command::new(&headworks).arg("init").arg(&project))?;
    let mut sql = Vec::new();
    let mut cpu = Duration::ZERO;
    for _ in 0..STARTS {
        let (cost, _) = measure::run(Command::new(&headworks).arg("-C").arg(&project).args(["sql", "select 1"]))?;
        sql.push(cost.wall);
        cpu += cost.cpu;
    }
    let cpu = cpu / u32::try_from(STARTS)?;
    println!("sql 'select 1' from cold: p50 {}, CPU {} (goal 150 ms)", ms(percentile(&mut sql, 0.5)), ms(cpu));

    let jobs = project.join("jobs/many");
    std::fs::create_dir_all(&jobs)?;
    for n in 0..JOBS {
        let from =
            if n == 0 { String::new() } else { format!(" FROM wait::table_{} WHERE ds = '{{{{ ds }}}}'", n - 1) };
        let text = format!(
            "/* job\nschedule: \"0 2 * * *\"\nstart: 2013-01-01\ntable: table_{n}\nowner: bench\ncolumns:\n  \
             a: {{type: bigint, description: a number, checks: [not_null]}}\nchecks:\n  \
             - {{name: some, sql: \"select count(*) > 0 from this\"}}\n*/\nSELECT 1 AS a{from}\n"
        );
        std::fs::write(jobs.join(format!("job_{n}.sql")), text)?;
    }
    let mut validate = Vec::new();
    let mut cpu = Duration::ZERO;
    for _ in 0..5 {
        let (cost, _) = measure::run(Command::new(&headworks).arg("-C").arg(&project).arg("validate"))?;
        validate.push(cost.wall);
        cpu += cost.cpu;
    }
    println!(
        "validate of 1,000 job files: p50 {}, CPU {} (goal 1,000 ms)",
        ms(percentile(&mut validate, 0.5)),
        ms(cpu / 5)
    );
    Ok(())
}
