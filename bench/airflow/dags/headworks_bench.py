"""The workloads of `bench/airflow/run.py`: nothing but overhead."""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG


def nothing():
    pass


def dag(name):
    return DAG(name, schedule=None, start_date=datetime(2026, 1, 1), catchup=False)


with dag("bench_fan_python"):
    for n in range(100):
        PythonOperator(task_id=f"t{n:03}", python_callable=nothing)

with dag("bench_fan_bash"):
    for n in range(100):
        BashOperator(task_id=f"t{n:03}", bash_command="true")

with dag("bench_chain"):
    before = None
    for n in range(50):
        task = PythonOperator(task_id=f"t{n:03}", python_callable=nothing)
        if before:
            before >> task
        before = task

with dag("bench_one"):
    PythonOperator(task_id="only", python_callable=nothing)

with dag("bench_sleeper"):
    # The odd number is how run.py finds the process.
    BashOperator(task_id="sleeps", bash_command="sleep 86399.5", retries=1, retry_delay=timedelta(hours=1))
