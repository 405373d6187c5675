/* job
description: Delays per route over the seven days that end with this one
owner: analytics
schedule: "30 4 * * *"
start: 2013-01-01
end: 2013-12-31
kind: events
# The day itself comes from the SQL below; the six before it are listed. Days before the table's start are not waited for.
wait:
  - {table: flights_flat, offset: -1}
  - {table: flights_flat, offset: -2}
  - {table: flights_flat, offset: -3}
  - {table: flights_flat, offset: -4}
  - {table: flights_flat, offset: -5}
  - {table: flights_flat, offset: -6}
columns:
  origin: {type: varchar, description: Airport of departure, checks: [not_null, {accepted_values: [EWR, JFK, LGA]}]}
  dest: {type: varchar, description: Airport of destination, checks: [not_null]}
  days: {type: bigint, description: Days of the window with a flight on this route, checks: [not_null]}
  flights: {type: bigint, description: Scheduled departures, checks: [not_null]}
  cancelled: {type: bigint, description: Departures that never left, checks: [not_null]}
  late: {type: bigint, description: "Departures that left late, or never", checks: [not_null]}
  dep_delay_avg: {type: double, description: Mean departure delay in minutes of those that left}
  arr_delay_avg: {type: double, description: Mean arrival delay in minutes of those that arrived}
  arr_delay_max: {type: bigint, description: Worst arrival delay in minutes}
checks:
  - {name: one_row_per_route, sql: "select count(*) = count(distinct concat(origin, dest)) from this"}
  - {name: window_is_seven_days, sql: "select max(days) <= 7 and min(days) >= 1 from this"}
  - {name: parts_fit, sql: "select count(*) = 0 from this where cancelled > late or late > flights"}
*/
SELECT
  origin,
  dest,
  count(DISTINCT ds) AS days,
  count(*) AS flights,
  count(*) FILTER (WHERE is_cancelled) AS cancelled,
  count(*) FILTER (WHERE is_late) AS late,
  avg(dep_delay) AS dep_delay_avg,
  avg(arr_delay) AS arr_delay_avg,
  max(arr_delay) AS arr_delay_max
FROM wait::flights_flat
WHERE ds BETWEEN '{{ macros.ds_add(ds, -6) }}' AND '{{ ds }}'
GROUP BY origin, dest
