/* job
description: What each carrier did on the day
owner: analytics
schedule: "30 4 * * *"
start: 2013-01-01
end: 2013-12-31
kind: events
columns:
  carrier: {type: varchar, description: Two-letter code of the carrier, checks: [not_null, unique, {relationships: {table: airlines, column: carrier}}]}
  carrier_name: {type: varchar, description: Name of the carrier, checks: [not_null]}
  flights: {type: bigint, description: Scheduled departures, checks: [not_null]}
  cancelled: {type: bigint, description: Departures that never left, checks: [not_null]}
  late: {type: bigint, description: "Departures that left late, or never", checks: [not_null]}
  dep_delay_minutes: {type: bigint, description: "Sum of departure delays, early ones counted below zero", checks: [not_null]}
  dep_delay_avg: {type: double, description: Mean departure delay in minutes of those that left}
  arr_delay_minutes: {type: bigint, description: Sum of arrival delays, checks: [not_null]}
  miles_flown: {type: bigint, description: Miles of the flights that left, checks: [not_null]}
  planes: {type: bigint, description: Different tail numbers, checks: [not_null]}
checks:
  - {name: some_carriers, row_count: {min: 10, max: 16}}
  - {name: parts_fit, sql: "select count(*) = 0 from this where cancelled > late or late > flights or planes > flights"}
deadline: "07:00"
*/
SELECT
  carrier,
  carrier_name,
  count(*) AS flights,
  count(*) FILTER (WHERE is_cancelled) AS cancelled,
  count(*) FILTER (WHERE is_late) AS late,
  coalesce(sum(dep_delay), 0) AS dep_delay_minutes,
  avg(dep_delay) AS dep_delay_avg,
  coalesce(sum(arr_delay), 0) AS arr_delay_minutes,
  coalesce(sum(distance) FILTER (WHERE NOT is_cancelled), 0) AS miles_flown,
  count(DISTINCT tailnum) AS planes
FROM wait::flights_flat
WHERE ds = '{{ ds }}'
GROUP BY carrier, carrier_name
