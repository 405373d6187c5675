/* job
description: Departures per airport and New York day, put together from the day's 24 hours
owner: operations
schedule: "0 6 * * *"
start: 2013-01-01
end: 2013-01-31
kind: events
columns:
  origin: {type: varchar, description: Airport of departure, checks: [not_null, unique, {accepted_values: [EWR, JFK, LGA]}]}
  hours: {type: bigint, description: Hours of the day with a departure, checks: [not_null]}
  departures: {type: bigint, description: Scheduled departures, checks: [not_null]}
  cancelled: {type: bigint, description: Departures that never left, checks: [not_null]}
  dep_delay_minutes: {type: bigint, description: Sum of departure delays, checks: [not_null]}
  busiest_hour_departures: {type: bigint, description: Departures in the busiest hour, checks: [not_null]}
checks:
  - {name: three_airports, row_count: {min: 3, max: 3}}
  - {name: hours_fit, sql: "select min(hours) >= 1 and max(hours) <= 25 from this"}
*/
SELECT
  origin,
  count(*) AS hours,
  sum(departures) AS departures,
  sum(cancelled) AS cancelled,
  sum(dep_delay_minutes) AS dep_delay_minutes,
  max(departures) AS busiest_hour_departures
FROM wait::departures_hourly
-- The wait asks for each hour of my day: 24, and 23 or 25 when the clocks change. The hours are named in UTC, so the day in
-- New York lies across two UTC days: `ds` keeps the scan to those two, `hour_start` picks the hours.
WHERE ds BETWEEN '{{ ds }}' AND '{{ macros.ds_add(ds, 1) }}'
  AND hour_start >= '{{ data_interval_start }}'
  AND hour_start < '{{ data_interval_end }}'
GROUP BY origin
