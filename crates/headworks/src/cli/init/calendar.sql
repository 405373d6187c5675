/* job
description: One row per day, with what people ask of a day
owner: data
schedule: "@daily"
start: 2026-01-01
columns:
  day: {type: date, description: "the day itself", checks: [not_null, unique]}
  weekday: {type: varchar, description: "its name", checks: [not_null]}
  is_weekend: {type: boolean, checks: [not_null]}
checks:
  - {name: one_row, sql: "select count(*) = 1 from this"}
*/

-- A job is one SELECT. Its rows become the partition of the run's day, {{ ds }}, in the table named like this file: they are
-- written aside, checked, and only then published. To read another job's table once its day is there: FROM wait::other_table.
SELECT
  DATE '{{ ds }}' AS day,
  to_char(DATE '{{ ds }}', '%A') AS weekday,
  extract(dow FROM DATE '{{ ds }}') IN (0, 6) AS is_weekend
