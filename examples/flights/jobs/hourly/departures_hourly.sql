/* job
description: Scheduled departures per airport and hour; hours without any have an empty partition
owner: operations
schedule: "15 * * * *"
grain: hour
start: 2013-01-01              # days of an hourly job are UTC's, as its hours are
end: 2013-02-01                # five hours more than January in New York
kind: events
columns:
  hour_start: {type: timestamptz, description: The hour's first instant, checks: [not_null]}
  origin: {type: varchar, description: Airport of departure, checks: [not_null, unique, {accepted_values: [EWR, JFK, LGA]}]}
  departures: {type: bigint, description: Scheduled departures, checks: [not_null]}
  cancelled: {type: bigint, description: Departures that never left, checks: [not_null]}
  dep_delay_minutes: {type: bigint, description: Sum of departure delays, checks: [not_null]}
checks:
  - {name: three_airports_at_most, row_count: {max: 3}}
*/
SELECT
  time_hour AS hour_start,
  origin,
  count(*) AS departures,
  count(*) FILTER (WHERE dep_time IS NULL) AS cancelled,
  coalesce(sum(dep_delay), 0) AS dep_delay_minutes
FROM wait::flights
-- A UTC hour lies in New York's day of the same date or of the one before.
WHERE ds BETWEEN '{{ macros.ds_add(ds, -1) }}' AND '{{ ds }}'
  AND time_hour >= '{{ data_interval_start }}'
  AND time_hour < '{{ data_interval_end }}'
GROUP BY time_hour, origin
