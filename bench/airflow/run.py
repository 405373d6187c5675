#!/usr/bin/env python3
"""Installs Airflow and measures it: the left column of the table that Headworks' orchestrator is held against.

    python3 bench/airflow/run.py                     everything; 30 minutes, most of them waiting
    python3 bench/airflow/run.py --rows fan,trigger  some rows: fan, chain, trigger, idle, file, dead

It needs PostgreSQL's programs (`make setup` installs them) and PyPI once. Airflow goes into target/airflow/venv and stays there;
its database and home are temporary, and every process it starts is ended. LocalExecutor, one API worker, parallelism 32, all else
as it comes. Times hold for this machine and its load: both stand in the table. CPU seconds are those of the whole stack with
PostgreSQL, and hold whatever else the machine does.
"""

import argparse
import glob
import json
import os
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

VERSION = "3.3.2"
PACKAGES = [f"apache-airflow=={VERSION}", "apache-airflow-providers-postgres", "apache-airflow-providers-standard"]
HERE = Path(__file__).resolve().parent
TARGET = HERE.parent.parent / "target" / "airflow"
VENV = TARGET / "venv"
ROWS = ["fan", "chain", "trigger", "idle", "file", "dead"]
FINAL = {"success", "failed"}
TRIGGERS = 8
TICK = os.sysconf("SC_CLK_TCK")


class Trouble(Exception):
    """Something that the person who runs this can mend."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def install():
    """Makes the virtual environment, once."""
    airflow = VENV / "bin" / "airflow"
    if airflow.exists():
        done = subprocess.run([airflow, "version"], capture_output=True, text=True, env=plain_environment())
        if done.returncode == 0 and VERSION in done.stdout:
            return
        shutil.rmtree(VENV)
    say(f"installing Airflow {VERSION} into {VENV}")
    TARGET.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    done = subprocess.run([VENV / "bin" / "pip", "install", "-q", *PACKAGES], capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise Trouble(
            f"Airflow {VERSION} could not be installed for Python {sys.version.split()[0]}:\n{tail}\n"
            "hint: it takes Python 3.10 to 3.14 and a way to PyPI; run this script with another python3"
        )


def plain_environment():
    return {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ} | {"HOME": str(TARGET)}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Postgres:
    """A cluster of its own on a free port, under an unprivileged user since PostgreSQL refuses root."""

    def __init__(self):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda p: int(p.split("/")[4]))
        initdb = found[-1] if found else shutil.which("initdb")
        if not initdb:
            raise Trouble("PostgreSQL's programs are missing\nhint: run `make setup`")
        self.bin = Path(initdb).resolve().parent
        self.process = self.log = None
        self.dir = Path(tempfile.mkdtemp(prefix="headworks-airflow-pg-"))
        self.as_user = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres") if "postgres" in {u.pw_name for u in pwd.getpwall()} else pwd.getpwnam("nobody")
            os.chown(self.dir, user.pw_uid, user.pw_gid)
            self.as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.port = free_port()
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/airflow"

    def start(self):
        data = self.dir / "data"
        with open(self.dir / "initdb.log", "w") as log:
            subprocess.run(
                [self.bin / "initdb", "-D", data, "-U", "airflow", "-A", "trust", "-E", "UTF8", "--locale=C"],
                stdout=log, stderr=log, check=True, cwd=self.dir, **self.as_user,
            )
        self.log = open(self.dir / "server.log", "w")
        self.process = subprocess.Popen(
            [self.bin / "postgres", "-D", data, "-p", str(self.port), "-k", self.dir, "-c", "listen_addresses=127.0.0.1"],
            stdout=self.log, stderr=self.log, cwd=self.dir, start_new_session=True, **self.as_user,
        )
        wait_until(lambda: self.sql("postgres", "select 1") == "1", 60, "PostgreSQL answers")
        self.sql("postgres", "create database airflow")

    def sql(self, database, text):
        done = subprocess.run(
            [self.bin / "psql", "-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-p", str(self.port), "-U", "airflow", "-d", database, "-c", text],
            capture_output=True, text=True,
        )
        return done.stdout.strip() if done.returncode == 0 else None

    def connections(self):
        return int(self.sql("airflow", "select count(*) from pg_stat_activity where datname = 'airflow' and pid <> pg_backend_pid()"))

    def stop(self):
        if self.process:
            # Fast shutdown: clients are cut off.
            end(self.process, signal.SIGINT)
            self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


class Airflow:
    """The four processes of an installation, and its API."""

    def __init__(self, postgres):
        self.home = Path(tempfile.mkdtemp(prefix="headworks-airflow-home-"))
        self.dags = self.home / "dags"
        shutil.copytree(HERE / "dags", self.dags)
        self.port = free_port()
        self.token = None
        self.processes = []
        secret = os.urandom(24).hex()
        self.environment = plain_environment() | {
            "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "32",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.port}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{self.port}",
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secret,
            "AIRFLOW__API_AUTH__JWT_SECRET": secret,
            # Its own health server has a fixed port otherwise.
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        }

    def start(self):
        begun = time.monotonic()
        with open(self.home / "migrate.log", "w") as log:
            done = subprocess.run([VENV / "bin" / "airflow", "db", "migrate"], stdout=log, stderr=log, env=self.environment)
        if done.returncode != 0:
            raise Trouble(f"`airflow db migrate` failed:\n{tail(self.home / 'migrate.log')}")
        say(f"database migrated in {time.monotonic() - begun:.1f} s")
        begun = time.monotonic()
        for role in (["api-server", "--workers", "1"], ["scheduler"], ["dag-processor"], ["triggerer"]):
            log = open(self.home / f"{role[0]}.log", "w")
            process = subprocess.Popen(
                [VENV / "bin" / "airflow", *role], stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
            self.processes.append(process)
        wait_until(self.answers, 300, "the API answers", self.check)
        say(f"the API answers after {time.monotonic() - begun:.1f} s")
        wait_until(lambda: self.lists("bench_sleeper") and self.lists("bench_one"), 600, "the DAGs are listed", self.check)
        say(f"the DAGs are listed after {time.monotonic() - begun:.1f} s")

    def check(self):
        for process in self.processes:
            if process.poll() is not None:
                name = Path(process.args[0]).name + " " + process.args[1]
                raise Trouble(f"`{name}` ended by itself:\n{tail(self.home / (process.args[1] + '.log'))}")

    def answers(self):
        try:
            self.token = self.call("GET", "/auth/token", None, "access_token")
        except OSError:
            return False
        return True

    def call(self, method, path, body=None, key=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        data = json.dumps(body).encode() if body is not None else None
        with urllib.request.urlopen(request, data, timeout=60) as reply:
            found = json.load(reply)
        return found.get(key) if key else found

    def lists(self, dag):
        try:
            return self.call("GET", f"/api/v2/dags/{dag}", None, "dag_id") == dag
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise

    def trigger(self, dag):
        """Starts a run and answers its id and when the request was sent."""
        sent = time.time()
        return self.call("POST", f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None}, "dag_run_id"), sent

    def run_of(self, dag, run):
        return self.call("GET", f"/api/v2/dags/{dag}/dagRuns/{run}")

    def tasks_of(self, dag, run):
        return self.call("GET", f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances?limit=100", None, "task_instances")

    def finished(self, dag, run, within):
        """Waits for a run's end and answers it. One look a second: looking costs the server, too."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            self.check()
            found = self.run_of(dag, run)
            if found["state"] in FINAL:
                if found["state"] != "success":
                    raise Trouble(f"a run of {dag} ended as {found['state']}")
                return found
            time.sleep(1)
        raise Trouble(f"a run of {dag} did not end within {within} s")

    def stop(self, keep):
        # The whole trees first: what loses its parent is hard to find again.
        family = descendants([p.pid for p in self.processes])
        for process in self.processes:
            end(process, signal.SIGTERM)
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if keep:
            say(f"kept {self.home}")
        else:
            shutil.rmtree(self.home, ignore_errors=True)


def tail(path, lines=15):
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def wait_until(holds, within, what, check=lambda: None):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        check()
        if holds():
            return
        time.sleep(0.5)
    raise Trouble(f"waited {within} s in vain until {what}")


def end(process, how):
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stat_of(pid):
    """Parent, and the ticks that the process and its reaped children used."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text.rsplit(") ", 1)[1].split()
    return int(fields[1]), sum(int(n) for n in fields[11:15])


def descendants(roots):
    """The processes of these trees, without those that end while we look."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = stat_of(entry)[0]
            except OSError:
                pass
    found, fresh = set(), {pid for pid in roots if pid in parents}
    while fresh:
        found |= fresh
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
    return found


def cpu_secs(roots):
    ticks = 0
    for pid in descendants(roots):
        try:
            ticks += stat_of(pid)[1]
        except OSError:
            pass
    return ticks / TICK


def pss_mib(roots):
    """What the processes hold of memory, with shared pages divided among those that share them."""
    kib = 0
    for pid in descendants(roots):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kib += int(line.split()[1])
        except OSError:
            pass
    return kib / 1024


def load():
    return os.getloadavg()[0]


def stretch():
    """How much longer than its CPU time a plain loop takes: 1.0 on a machine that is otherwise idle."""
    wall, cpu, n = time.monotonic(), time.process_time(), 0
    while time.process_time() - cpu < 0.5:
        n += sum(range(1000))
    return (time.monotonic() - wall) / (time.process_time() - cpu)


def instant(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Bench:
    def __init__(self, postgres, airflow):
        self.postgres, self.airflow = postgres, airflow
        self.roots = [p.pid for p in airflow.processes] + [postgres.process.pid]
        self.table = []

    def measure(self, what, work):
        """Does the work and writes its row: what it answers, the CPU that the whole stack used meanwhile, and how busy it was."""
        busy, before, cpu = stretch(), load(), cpu_secs(self.roots)
        seen = work()
        cpu = cpu_secs(self.roots) - cpu
        row = [what, seen, f"{cpu:.1f}", f"{before:.1f} -> {load():.1f}", f"{busy:.1f}"]
        say(" | ".join(row))
        self.table.append(row)

    def whole_run(self, dag, within=1800):
        def work():
            run, sent = self.airflow.trigger(dag)
            done = self.airflow.finished(dag, run, within)
            return f"{instant(done['end_date']) - sent:.1f} s"

        return work

    def fan(self):
        self.measure("100 independent no-op tasks, Python", self.whole_run("bench_fan_python"))
        self.measure("100 independent no-op tasks, bash `true`", self.whole_run("bench_fan_bash"))

    def chain(self):
        self.measure("chain of 50", self.whole_run("bench_chain"))

    def trigger(self):
        # The first run after a start pays for imports.
        run, _ = self.airflow.trigger("bench_one")
        self.airflow.finished("bench_one", run, 300)

        def work():
            took = []
            for _ in range(TRIGGERS):
                run, sent = self.airflow.trigger("bench_one")
                self.airflow.finished("bench_one", run, 300)
                took.append(instant(self.airflow.tasks_of("bench_one", run)[0]["start_date"]) - sent)
            return f"p50 {statistics.median(took):.2f} s ({min(took):.2f} to {max(took):.2f}, n={TRIGGERS})"

        self.measure("trigger to first task running", work)

    def idle(self):
        time.sleep(10)

        def work():
            connections, cpu, begun = [], cpu_secs(self.roots), time.monotonic()
            while time.monotonic() - begun < 60:
                connections.append(self.postgres.connections())
                time.sleep(5)
            percent = 100 * (cpu_secs(self.roots) - cpu) / (time.monotonic() - begun)
            stack = pss_mib(self.roots[:-1])
            database = pss_mib(self.roots[-1:])
            return (
                f"{stack:.0f} MiB and {database:.0f} of PostgreSQL, {percent:.1f} % of a core, "
                f"{min(connections)}-{max(connections)} connections"
            )

        self.measure("idle for a minute", work)

    def file(self):
        def listed(name):
            text = (self.airflow.dags / "headworks_bench.py").read_text().replace('"bench_', f'"{name}_')
            begun = time.monotonic()
            (self.airflow.dags / f"{name}.py").write_text(text)
            wait_until(lambda: self.airflow.lists(f"{name}_one"), 900, "the new file is listed", self.airflow.check)
            return time.monotonic() - begun

        def work():
            # Airflow looks for files every 300 s: the second file comes just after such a look.
            return f"{listed('fresh'):.0f} s at some moment, {listed('fresher'):.0f} s just after a look"

        self.measure("new file listed", work)

    def dead(self):
        def work():
            run, _ = self.airflow.trigger("bench_sleeper")
            wait_until(lambda: sleeper(self.roots) is not None, 120, "the sleeping task runs", self.airflow.check)
            time.sleep(10)
            # The scheduler's child is the executor's worker, which supervises the task; below it are the task and what it runs.
            line = [sleeper(self.roots)]
            while (parent := stat_of(line[-1])[0]) not in self.roots:
                line.append(parent)
            if b"airflow worker" not in Path(f"/proc/{line[-1]}/cmdline").read_bytes():
                raise Trouble("the supervisor of a task is not where it was expected: nothing was killed")
            begun = time.monotonic()
            for pid in reversed(line):
                os.kill(pid, signal.SIGKILL)
            running = {"running", "queued", "scheduled", None}
            wait_until(
                lambda: self.airflow.tasks_of("bench_sleeper", run)[0]["state"] not in running, 1200, "the death is noticed"
            )
            state = self.airflow.tasks_of("bench_sleeper", run)[0]["state"]
            return f"{time.monotonic() - begun:.0f} s (to `{state}`)"

        self.measure("dead worker noticed (SIGKILL of a task and its supervisor)", work)


def sleeper(roots):
    for pid in descendants(roots):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\x0086399.5"):
                return pid
        except OSError:
            pass
    return None


def show(table, took):
    cores = os.cpu_count()
    print(f"Airflow {VERSION}, LocalExecutor, PostgreSQL, Python {sys.version.split()[0]}, {cores} cores; {took / 60:.0f} minutes in all\n")
    print("| what | seen | CPU-s of the stack | load (1 min) | stretch before |")
    print("|---|---|---|---|---|")
    for row in table:
        print("| " + " | ".join(row) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows, with commas between: " + ", ".join(ROWS))
    parser.add_argument("--keep", action="store_true", help="keep Airflow's home with its logs")
    args = parser.parse_args()
    rows = args.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}: write some of {', '.join(ROWS)}")
    # Ctrl-C and a polite kill take the same way out as an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begun = time.monotonic()
    postgres = airflow = bench = None
    try:
        install()
        postgres = Postgres()
        postgres.start()
        airflow = Airflow(postgres)
        airflow.start()
        bench = Bench(postgres, airflow)
        for row in [row for row in ROWS if row in rows]:
            getattr(bench, row)()
        return 0
    except Trouble as trouble:
        say(f"error: {trouble}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if airflow:
            airflow.stop(args.keep)
        if postgres:
            postgres.stop()
        if bench and bench.table:
            show(bench.table, time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
