/* job
description: One row per scheduled departure with names, plane and weather beside it; needs no joins
owner: analytics
schedule: "0 4 * * *"
start: 2013-01-01
end: 2013-12-31
kind: events
columns:
  flight_key: {type: varchar, description: "Carrier, number and origin, as UA1545-EWR", checks: [not_null, unique]}
  time_hour: {type: timestamptz, description: Scheduled departure cut to the hour, checks: [not_null]}
  carrier: {type: varchar, description: Two-letter code of the carrier, checks: [not_null, {relationships: {table: airlines, column: carrier}}]}
  carrier_name: {type: varchar, description: Name of the carrier, checks: [not_null]}
  flight: {type: bigint, description: Flight number, checks: [not_null]}
  tailnum: {type: varchar, description: Tail number of the plane}
  plane_manufacturer: {type: varchar, description: Maker of the plane; null when the registry does not know it}
  plane_model: {type: varchar, description: Model of the plane}
  plane_year: {type: bigint, description: Year of make}
  plane_seats: {type: bigint, description: Seats of the plane}
  origin: {type: varchar, description: Airport of departure, checks: [not_null, {accepted_values: [EWR, JFK, LGA]}, {relationships: {table: airports, column: faa}}]}
  origin_name: {type: varchar, description: Name of the airport of departure, checks: [not_null]}
  dest: {type: varchar, description: Airport of destination, checks: [not_null]}
  dest_name: {type: varchar, description: "Name of the destination; null for four airports outside the list (BQN, PSE, SJU, STT)"}
  distance: {type: bigint, description: Miles between the airports, checks: [not_null]}
  sched_dep_time: {type: bigint, description: "Scheduled departure, local, as HHMM", checks: [not_null]}
  dep_time: {type: bigint, description: "Actual departure, local, as HHMM"}
  dep_delay: {type: bigint, description: "Departure delay in minutes, below zero when early"}
  arr_delay: {type: bigint, description: Arrival delay in minutes}
  air_time: {type: bigint, description: Minutes in the air}
  is_cancelled: {type: boolean, description: It never left, checks: [not_null]}
  is_late: {type: boolean, description: "It left late, or never", checks: [not_null]}
  temp: {type: double, description: Temperature at the origin in that hour in degrees Fahrenheit}
  wind_speed: {type: double, description: Wind at the origin in miles per hour}
  precip: {type: double, description: Precipitation at the origin in inches}
  visib: {type: double, description: Visibility at the origin in miles}
checks:
  - {name: a_usual_day, row_count: {min: 500, max: 1200}}
  - {name: cancelled_have_no_delay, sql: "select count(*) = 0 from this where is_cancelled and dep_delay is not null"}
*/
SELECT
  concat(f.carrier, f.flight, '-', f.origin) AS flight_key,
  f.time_hour,
  f.carrier,
  airline.name AS carrier_name,
  f.flight,
  f.tailnum,
  plane.manufacturer AS plane_manufacturer,
  plane.model AS plane_model,
  plane.year AS plane_year,
  plane.seats AS plane_seats,
  f.origin,
  origin.name AS origin_name,
  f.dest,
  dest.name AS dest_name,
  f.distance,
  f.sched_dep_time,
  f.dep_time,
  f.dep_delay,
  f.arr_delay,
  f.air_time,
  f.dep_time IS NULL AS is_cancelled,
  f.dep_time IS NULL OR f.dep_delay >= {{ var.late_minutes }} AS is_late,
  weather.temp,
  weather.wind_speed,
  weather.precip,
  weather.visib
FROM wait::flights AS f
-- The whole-table imports keep one copy per day: join the copy of this day, or every row comes back 365 times.
LEFT JOIN wait::airlines AS airline ON airline.ds = '{{ ds }}' AND airline.carrier = f.carrier
LEFT JOIN wait::planes AS plane ON plane.ds = '{{ ds }}' AND plane.tailnum = f.tailnum
LEFT JOIN wait::airports AS origin ON origin.ds = '{{ ds }}' AND origin.faa = f.origin
LEFT JOIN wait::airports AS dest ON dest.ds = '{{ ds }}' AND dest.faa = f.dest
LEFT JOIN wait::weather AS weather ON weather.ds = '{{ ds }}' AND weather.origin = f.origin AND weather.time_hour = f.time_hour
WHERE f.ds = '{{ ds }}'
