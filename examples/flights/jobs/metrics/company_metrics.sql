/* job
description: Running totals per carrier since the first day; each partition holds everything up to its ds
owner: analytics
schedule: "0 5 * * *"
start: 2013-01-01
end: 2013-12-31
kind: cumulative
columns:
  carrier: {type: varchar, description: Two-letter code of the carrier, checks: [not_null, unique, {relationships: {table: airlines, column: carrier}}]}
  carrier_name: {type: varchar, description: Name of the carrier, checks: [not_null]}
  first_ds: {type: date, description: First day with a flight, checks: [not_null]}
  last_ds: {type: date, description: Last day with a flight so far, checks: [not_null]}
  days_active: {type: bigint, description: Days with a flight, checks: [not_null]}
  flights_total: {type: bigint, description: Scheduled departures since the first day, checks: [not_null]}
  cancelled_total: {type: bigint, description: Departures that never left, checks: [not_null]}
  late_total: {type: bigint, description: "Departures that left late, or never", checks: [not_null]}
  dep_delay_minutes_total: {type: bigint, description: Sum of departure delays, checks: [not_null]}
  miles_total: {type: bigint, description: Miles flown, checks: [not_null]}
checks:
  - {name: some_carriers, row_count: {min: 10, max: 16}}
  - {name: nobody_flies_in_the_future, sql: "select max(last_ds) = date '{{ ds }}' from this"}
  - {name: parts_fit, sql: "select count(*) = 0 from this where cancelled_total > late_total or late_total > flights_total"}
deadline: "07:30"
*/
SELECT
  carrier,
  max(carrier_name) AS carrier_name,
  min(first_ds) AS first_ds,
  max(last_ds) AS last_ds,
  sum(days_active) AS days_active,
  sum(flights_total) AS flights_total,
  sum(cancelled_total) AS cancelled_total,
  sum(late_total) AS late_total,
  sum(dep_delay_minutes_total) AS dep_delay_minutes_total,
  sum(miles_total) AS miles_total
FROM (
  -- Yesterday's totals: none on the first day, where the wait on the job's own past is satisfied at once.
  SELECT
    carrier, carrier_name, first_ds, last_ds, days_active,
    flights_total, cancelled_total, late_total, dep_delay_minutes_total, miles_total
  FROM wait::self@-1
  WHERE ds = '{{ prev_ds }}'
  UNION ALL
  SELECT
    carrier, carrier_name, ds AS first_ds, ds AS last_ds, 1 AS days_active,
    flights, cancelled, late, dep_delay_minutes, miles_flown
  FROM wait::carrier_daily
  WHERE ds = '{{ ds }}'
)
GROUP BY carrier
