# Statements that mean harm, or do it. One a line; `<<1000 x>>` stands for a thousand times `x`, with `{n}`
# counting from 1 and `{p}` from 0.
# Under `fails` each must end in an error; under `ends` an answer is as good.

# ends: deep nesting
select <<200 (>>1<<200 )>>
select <<200 abs(>>1<<200 )>>
select <<200 not >>true
select <<200 - >>1
select <<200 case when true then >>1<<200  end>>
select * from <<200 (select * from >>(select 1)<<200 )>>
select <<200 [>>1<<200 ]>>
select 1<<200 ::bigint>>
select 1 <<200 is null >>
select cast(null as int<<200 []>>)
select cast(null as <<200 array<>>int<<200 {gt}>>)
select <<200 interval >>'1 day'
select <<200 exists (select >>1<<200 )>>
select 1 in (<<200 select 1 where 1 in (>>1<<200 )>>)
select <<200 coalesce(null, >>1<<200 )>>
select <<200 struct(>>1<<200 )>>
select <<200 'x' || >>'x'
select '{}' <<200  -> 'a'>>
select <<200 year(>>current_date<<200 )>>
select <<200 try(>>1/0<<200 )>>
select <<200 iff(true, >>1<<200 , 2)>>
select <<200 last_day(>>current_date<<200 )>>
select <<200 slice(>>[1]<<200 , 1, 1)>>
select <<200 width_bucket(>>1<<200 , 0, 1, 2)>>
select <<200 max_by(1, (select >>1<<200 ))>>
select <<5000 (>>1<<5000 )>>
select <<5000 abs(>>1<<5000 )>>
select <<5000 not >>true
select <<5000 - >>1
select <<5000 case when true then >>1<<5000  end>>
select * from <<5000 (select * from >>(select 1)<<5000 )>>
select <<5000 [>>1<<5000 ]>>
select 1<<5000 ::bigint>>
select 1 <<5000 is null >>
select cast(null as int<<5000 []>>)
select cast(null as <<5000 array<>>int<<5000 {gt}>>)
select <<5000 interval >>'1 day'
select <<5000 exists (select >>1<<5000 )>>
select 1 in (<<5000 select 1 where 1 in (>>1<<5000 )>>)
select <<5000 coalesce(null, >>1<<5000 )>>
select <<5000 struct(>>1<<5000 )>>
select <<5000 'x' || >>'x'
select '{}' <<5000  -> 'a'>>
select <<5000 year(>>current_date<<5000 )>>
select <<5000 try(>>1/0<<5000 )>>
select <<5000 iff(true, >>1<<5000 , 2)>>
select <<5000 last_day(>>current_date<<5000 )>>
select <<5000 slice(>>[1]<<5000 , 1, 1)>>
select <<5000 width_bucket(>>1<<5000 , 0, 1, 2)>>
select <<5000 max_by(1, (select >>1<<5000 ))>>

# ends: wide texts
select <<12000 1+>>1
select <<12000 delay+>>delay from flights
select 1 <<5000 union all select 1 >>
select 1 <<300 union select 1 >>
select 1 <<300 intersect select 1 >>
select * from flights where <<10000 delay = 1 or >>false
select * from flights where <<120 delay = 1 or >>false
select * from flights where delay in (<<18000 1,>>1)
select * from flights where carrier in (<<9000 'x',>>'y')
select * from flights where not (delay in (<<18000 1,>>1))
select <<15000 1,>>1
select <<3000 delay as d,>>1 from flights
values (1)<<9000 ,(1)>>
values (<<9000 1,>>1)
select count(*) from flights group by <<2000 delay,>>delay
select * from flights order by <<2000 delay,>>delay
select 1 from flights <<5000 cross join flights >>
select 1 from flights <<5000 , flights>>
select count(*) from flights f0 <<14 join flights using (ds) >>
from flights <<5000 |> where delay > 0 >>
from flights <<150 |> where delay > 0 >>
select <<9000 concat('a', 'b'),>>1
select concat(<<18000 'a',>>'b')
select greatest(<<15000 1,>>2)
select case <<5000 when true then 1 >>end
select grouping(ds) from flights group by cube (<<200 ds,>>ds)
select 1 from flights group by cube (ds, carrier, delay, ds + 1, ds + 2, ds + 3, ds + 4, ds + 5, ds + 6, ds + 7, ds + 8, ds + 9, ds + 10, ds + 11, ds + 12, ds + 13)
select row_number() over (partition by <<3000 ds,>>ds) from flights
select <<800 sum(delay) over (order by delay),>>1 from flights

# ends: texts that are no SQL
select <<20000 /*>>1
<<10000 select '>>
<<1000 \0>>
<<20000 select >>
select '<<250000 x>>'
select <<60000 ">>
select 1e<<5000 9>>
select <<20000 9>>
select 0.<<20000 1>>
select $<<9000 1>>
select <<10000 '' >>
<<4000 (>>
<<30000 ;>>
select 1;<<1000 ;>>
select <<1000 @>>
select x'<<50000 ab>>'
select u&'\+10FFFF'
select '\0'
select 'a\0b' || 'c'
select * from "fl\0ights"
select '<<20000 é>>'
select '‮' || '​' || '﻿'
select 'e<<5000 ́>>'
select upper('<<2000 ß>>')
select lower('<<2000 İ>>')
select reverse('<<1000 👨‍👩‍👧>>')
select initcap('<<2000 ŉ>>')
-- nothing
/* <<500 /* >>deep<<500  */>> */ select 1
select 1 -- <<20000 x>>
select /*+ hint(x) */ 1
select N'x', E'\\x41', $$x$$

# ends: values without end
select length(cast(repeat('x', 2000000000) as text))
select length(cast(repeat('x', 9223372036854775807) as text))
select length(cast(repeat(repeat('x', 60000), 60000) as text))
select length(cast(repeat('<<1000 x>>', 2000000) as text))
select length(cast(lpad('x', 2000000000) as text))
select length(cast(rpad('x', 2147483647, 'ab') as text))
select length(cast(lpad('x', 2000000000, '👨') as text))
select length(cast(replace(repeat('x', 1000000), 'x', repeat('y', 100000)) as text))
select length(cast(replace(repeat('x', 1000000), '', repeat('y', 10000)) as text))
select length(cast(regexp_replace(repeat('x', 1000000), 'x', repeat('y', 100000), 'g') as text))
select length(cast(regexp_replace(repeat('x', 1000000), '(x*)', '<<200 \1>>', 'g') as text))
select array_repeat(1, 2000000000)
select array_repeat(repeat('x', 1000000), 100000)
select array_repeat(array_repeat(array_repeat(1, 10000), 10000), 10000)
select range(0, 9000000000)
select range(9223372036854775807)
select generate_series(-9000000000000000000, 9000000000000000000)
select generate_series(timestamp '1700-01-01', timestamp '2200-01-01', interval '1 microsecond')
select range(date '0001-01-01', date '9999-12-31', interval '1 day')
select array_resize([1], 2000000000, 0)
select array_to_string(array_repeat('', 4000000), repeat('x', 100000))
select length(cast(concat(repeat('x', 60000000), repeat('x', 60000000), repeat('x', 60000000)) as text))
select length(cast(concat_ws(repeat('x', 16000000), 'a', 'b', 'c', 'd', 'e', 'f') as text))
select length(cast(repeat('x', 16000000) || repeat('y', 16000000) as text))
select length(cast(to_char(now(), repeat('Month', 1000000)) as text))
select length(cast(date_format(now(), repeat('%M', 1000000)) as text))
select length(cast(to_char(now(), repeat('%+', 2000000)) as text))
select length(cast(to_char(1, repeat('9', 4000000)) as text))
select length(cast(to_char(1, repeat('RN', 2000000)) as text))
select length(cast(to_char(1.5, '9V' || repeat('9', 1000000)) as text))
select length(cast(to_char(cast(1 as decimal(38, 0)), '9V' || repeat('9', 200000)) as text))
select to_char(value, repeat('9', 100000)) from generate_series(1, 1000000)
select length(cast(to_json(repeat(chr(1), 16000000)) as text))
select length(cast(to_json(array_repeat('', 3000000)) as text))
select length(cast(json_build_array(<<100 repeat('"', 4000000),>> 1) as text))
select length(cast(jsonb_build_object('a', repeat(chr(1), 3000000), 'a', repeat(chr(1), 3000000)) as text))
select length(cast(to_jsonb(('[' || repeat('{"a":1,"a":2},', 200000) || '1]')::json) as text))
select length(cast(to_jsonb((repeat('[', 190) || repeat(']', 190))::json) as text))
select to_json(repeat(chr(1), 1000000)) from generate_series(1, 100000)
select json_array_elements('[' || repeat('1,', 4000000) || '1]')
select json_array_elements_text('[' || repeat('1,', value) || '1]') from generate_series(1, 1000000)
select length(cast(format('%1000000000s', 'x') as text))
select length(cast(format('%99999999999999999999999s', 'x') as text))
select length(cast(format(repeat('%1$s', 100000), repeat('x', 1000000)) as text))
select format('%10000s', value) from generate_series(1, 10000000)
select length(cast(quote_literal(repeat('''', 4000000)) as text))
select regexp_extract_all(repeat('x', 4000000), 'x')
select regexp_extract_all(repeat('x', 4000000), '')
select regexp_split_to_array(repeat('x', 4000000), '')
select histogram(value) from generate_series(1, 100000000)
select map_agg(value, repeat('x', 1000)) from generate_series(1, 100000000)
select interval '2000000000 months' * 2000000000
select <<40 try(1 / 0 +>> 1 <<40 )>>
select <<30 try(1 / x +>> 1 <<30 )>> from (select 0 * value as x from generate_series(1, 1000000)) t
select count(try(cast(repeat('x', 1000 + value % 2) as int) + 1)) from generate_series(1, 10000000)
select count(try(1 / (value * 0))) from generate_series(1, 100000000)
select count(try(repeat('x', 2000000000))) from generate_series(1, 100000000)
select length(cast(encode(repeat('x', 16000000), 'hex') as text))
select length(cast(encode(repeat('x', 16000000), 'base64') as text))
select split(repeat(',', 16000000), ',')
select string_to_array(repeat('x', 16000000), '')
select length(cast(translate(repeat('x', 16000000), 'x', '👨') as text))
select length(cast(overlay(repeat('x', 16000000) placing repeat('y', 16000000) from 1) as text))
select length(cast(md5(repeat('x', 16000000)) as text))
select length(cast(reverse(repeat('x', 16000000)) as text))
select length(cast(factorial(170) as text))
select length(cast(power(10, 400) as text))
select length(cast(cast(repeat('9', 100000) as decimal(38, 0)) as text))
select length(cast(cast(repeat('9', 16000000) as bigint) as text))
select length(cast(chr(1114112) as text))
select length(cast(levenshtein(repeat('a', 100000), repeat('b', 100000)) as text))
select length(cast(json_get(repeat('[', 16000000), 0) as text))
select length(cast(json_parse(repeat('{"a":', 100000)) as text))
select length(cast(json_extract(repeat('[1,', 1000000), '$[999999]') as text))
select json_object_keys(repeat('{', 16000000))
select length(cast(element_at(array_repeat(1, 16000000), -1) as text))
select array_sort(array_repeat(1, 2000000))
select array_distinct(range(0, 1000000))
select array_concat(range(0, 1000000), range(0, 1000000), range(0, 1000000))
select flatten(array_repeat(range(0, 1000), 1000))
select length(cast(date_add('year', 9223372036854775807, now()) as text))
select length(cast(date_add('day', 99999999, date '2020-01-01') as text))
select length(cast(to_timestamp(9223372036854775807) as text))
select length(cast(interval '999999999999 years' as text))
select length(cast(url_extract_host(repeat('http://', 1000000)) as text))
select repeat('x', value * 1000000) from generate_series(1, 100000)
select repeat('x', 16000000) from generate_series(1, 100000)
select lpad('x', value, 'y') from generate_series(1, 1000000)
select array_repeat(value, value) from generate_series(1, 100000)
select a.x from (select repeat('x', 8000000) as x) a cross join generate_series(1, 100000)
select a.x || b.x from (select repeat('x', 8000000) as x) a, (select repeat('y', 7000000) as x from generate_series(1, 1000)) b
select unnest(range(0, 2000000)), repeat('x', 1000000)
select unnest(array_repeat(repeat('x', 100000), 100)) from generate_series(1, 1000000)
with t as (select repeat('x', 8000000) as x from generate_series(1, 100)) select count(*) from t a join t b on a.x = b.x
select first_value(repeat('x', 8000000)) over () from generate_series(1, 100000)
select lag(repeat('x', 8000000)) over (order by value) from generate_series(1, 100000)
select * from (select repeat('x', 8000000) as x from generate_series(1, 10000)) order by x
select x, count(*) from (select repeat('x', 8000000) || value as x from generate_series(1, 10000)) group by x
select distinct repeat('x', 1000000) || value from generate_series(1, 10000)

# ends: aggregates without end
select string_agg(repeat('x', 1000000), ',') from generate_series(1, 100000)
select string_agg(value, ',') from generate_series(1, 1000000000)
select length(string_agg(repeat('x', 10000), '')) from generate_series(1, 10000000) group by value % 3
select array_agg(value) from generate_series(1, 10000000000)
select array_agg(repeat('x', 100000)) from generate_series(1, 100000)
select array_agg(distinct value) from generate_series(1, 1000000000)
select array_agg(value order by value desc) from generate_series(1, 1000000000)
select array_agg(value) over (order by value) from generate_series(1, 1000000)
select string_agg(value, ',') over (order by value) from generate_series(1, 1000000)
select listagg(value, repeat('x', 1000)) within group (order by value) from generate_series(1, 10000000)
select count(distinct value) from generate_series(1, 10000000000)
select count(distinct repeat('x', 1000) || value) from generate_series(1, 100000000)
select approx_distinct(value) from generate_series(1, 100000000000)
select approx_percentile(value, 0.5) from generate_series(1, 100000000000)
select json_agg(value) from generate_series(1, 10000000000)
select json_agg(value order by value desc) over () from generate_series(1, 10000000)
select jsonb_object_agg(value, value) from generate_series(1, 10000000000)
select json_agg(value) over (order by value) from generate_series(1, 1000000)
select length(json_agg(repeat(chr(1), 10000))) from generate_series(1, 10000000) group by value % 3
select median(value) from generate_series(1, 10000000000)
select value, count(*) from generate_series(1, 10000000000) group by value
select value % 100000000, array_agg(value) from generate_series(1, 10000000000) group by 1
select max_by(value, random()) from generate_series(1, 100000000000)
select corr(value, value), regr_slope(value, value) from generate_series(1, 100000000000)

# ends: rows without end
select count(*) from generate_series(1, 10000000) a, generate_series(1, 10000000) b
select count(*) from generate_series(1, 10000000) a, generate_series(1, 10000000) b where a.value <> b.value
select count(*) from generate_series(1, 1000000) a join generate_series(1, 1000000) b on a.value < b.value
select count(*) from generate_series(1, 1000000) a join generate_series(1, 1000000) b on a.value % 2 = b.value % 2
select count(*) from generate_series(1, 1000000) a left join generate_series(1, 1000000) b on a.value > b.value
select count(*) from generate_series(1, 1000000) a full join generate_series(1, 1000000) b on a.value > b.value
select * from generate_series(1, 100000000000)
select * from generate_series(1, 100000000000) order by value % 7, value
select * from generate_series(1, 100000000000) order by random() limit 10
select sum(value) over (order by value) from generate_series(1, 100000000000)
select row_number() over (order by value desc) from generate_series(1, 1000000000)
select sum(value) over (rows between unbounded preceding and unbounded following) from generate_series(1, 1000000000)
select rank() over (partition by value % 2 order by value) from generate_series(1, 1000000000)
select sum(value) over (order by value rows between 100000 preceding and current row) from generate_series(1, 100000000)
select max(value) over (order by value rows between 100000 preceding and current row) from generate_series(1, 100000000)
with recursive t as (select 1 as n union all select n + 1 from t) select count(*) from t
with recursive t as (select 1 as n union all select n from t) select * from t
with recursive t as (select 1 as n union select n + 1 from t) select max(n) from t
with recursive t as (select 1 as n union all select a.n from t a, generate_series(1, 10)) select count(*) from t
with recursive t as (select 'x' as x union all select x || x from t) select length(x) from t
with recursive t as (select [1] as x union all select array_concat(x, x) from t) select count(*) from t
select unnest(range(0, 10000)) from generate_series(1, 100000000)
select count(*) from (select unnest(range(0, 10000)) from generate_series(1, 100000000))
select unnest(range(0, 1000)), unnest(range(0, 1000)) from generate_series(1, 10000000)
select * from generate_series(1, 100000000000) where value = -1
select * from generate_series(1, 100000000000) offset 99999999999
select * from generate_series(1, 100000000000) limit 1 offset 99999999999
select distinct value from generate_series(1, 100000000000)
select value from generate_series(1, 1000000000) except select value from generate_series(1, 1000000000)
select value from generate_series(1, 1000000000) intersect select value from generate_series(1, 1000000000)
select value from generate_series(1, 1000000000) union select value from generate_series(1, 1000000000)
select (select count(*) from generate_series(1, 10000000) b where b.value < a.value) from generate_series(1, 10000000) a
select * from generate_series(1, 1000000) a where exists (select 1 from generate_series(1, 1000000) b where b.value > a.value + 999999)
select * from generate_series(1, 10000000) where value not in (select value + 1 from generate_series(1, 10000000))
explain analyze select count(*) from generate_series(1, 100000000000)
explain analyze select count(*) from generate_series(1, 10000000) a, generate_series(1, 10000000) b
select * from flights a, flights b, flights c, flights d, flights e, flights f, flights g, flights h, flights i, flights j

# ends: names and CTEs that double
with c0 as (select 1 as x)<<29 , c{n} as (select a.x from c{p} a join c{p} b on a.x = b.x)>> select * from c29
with c0 as (select 1 as x)<<29 , c{n} as (select * from c{p} union all select * from c{p})>> select * from c29
with c0 as (select 'x' as x)<<39 , c{n} as (select x || x as x from c{p})>> select length(x) from c39
with c0 as (select 'x' as x)<<39 , c{n} as (select concat(x, x) as x from c{p})>> select length(x) from c39
with c0 as (select [1] as x)<<39 , c{n} as (select array_concat(x, x) as x from c{p})>> select * from c39
with c0 as (select [1] as x)<<39 , c{n} as (select [x, x] as x from c{p})>> select * from c39
with c0 as (select 1 as x)<<39 , c{n} as (select struct(x, x) as x from c{p})>> select * from c39
with c0 as (select 1 as x)<<39 , c{n} as (select named_struct('a', x, 'b', x) as x from c{p})>> select * from c39
with c0 as (select 1 as x)<<39 , c{n} as (select map([x], [x]) as x from c{p})>> select * from c39
with c0 as (select 1 as x)<<39 , c{n} as (select map_agg(x, x) as x from c{p})>> select * from c39
select <<60 abs(case when delay > 1 then >>delay<<60  end)>> from flights
select <<60 coalesce(nullif(>>delay<<60 , 1), 2)>> from flights
select <<100 round(try(>>delay<<100 ))>> from flights
select <<60 (>>true<<60  between false and true)>> from flights
select <<60 (>>delay > 1<<60  between delay > 2 and delay > 3)>> from flights
select <<60 ifnull(nvl(>>delay<<60 , 1), 2)>> from flights
select <<60 nvl2(>>delay<<60 , 1, 2)>> from flights
select <<60 greatest(least(>>delay<<60 , 1), 2)>> from flights
select <<60 (case >>delay<<60  when 1 then 2 else 3 end)>> from flights
select <<60 (>>delay > 1<<60  is distinct from (delay > 2))>> from flights
select <<60 (>>delay > 1<<60  in (delay > 2, delay > 3))>> from flights
select <<60 date_trunc('day', >>ds<<60  + interval '1 day')>> from flights
with c0 as (select value::text as x from generate_series(1, 100))<<39 , c{n} as (select x || x as x from c{p})>> select length(x) from c39
with c0 as (select [value] as x from generate_series(1, 100))<<39 , c{n} as (select [x, x] as x from c{p})>> select * from c39
select replace(replace(replace(replace(replace(replace(replace(replace(replace(replace(replace(replace('x', 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx'), 'x', 'xxxxxxxxxx')
select repeat(repeat(repeat(repeat(repeat(repeat(repeat(repeat(repeat(repeat(repeat(repeat('x', 100), 100), 100), 100), 100), 100), 100), 100), 100), 100), 100), 100)
select circle.* from circle
select * from broken
with a as (select * from b), b as (select * from a) select * from a
<<60 with w as (>>select 1 as x<<60 ) select * from w>>

# ends: patterns
select regexp_like(repeat('a', 100000), '(a*)*b')
select regexp_like(repeat('a', 1000000), '(a|aa)+$')
select regexp_replace(repeat('a', 1000000), '(a+)+', 'b', 'g')
select regexp_count(repeat('ab', 1000000), '.')
select regexp_like('a', 'a{1000}{1000}{1000}')
select regexp_like('a', '<<200 (>>a<<200 )*>>')
select regexp_like('a', '(?i)<<5000 \pL>>')
select regexp_like(repeat('a', 100000), '<<1000 a?>><<1000 a>>')
select regexp_match(repeat('a', 1000000), '<<100 (a*)>>')
select repeat('a', 1000000) like '<<1000 %a>>%b'
select repeat('a', 1000000) similar to '(a|b)*c'
select repeat('a', 1000000) ~ '<<1000 (a|b)>>'
select count(*) from generate_series(1, 100000000) where value::text ~ '(1|2)*(3|4)*5$'
select regexp_like('x', value::text || '.*') from generate_series(1, 10000000)
select regexp_extract_all('x', value::text || '.*') from generate_series(1, 10000000)
select regexp_split_to_array('a', '<<200 (>>a<<200 )*>>')
select regexp_extract_all(repeat('a', 1000000), '(a|aa)+$')
select regexp_extract(repeat('a', 1000000), '(a)(a)(a)', 99)
select 'x' ~ (value::text || '.*') from generate_series(1, 10000000)

# fails: files and what else is outside
create external table x stored as csv location '/etc/passwd'
create external table x stored as parquet location 'http://127.0.0.1/x'
copy flights to '/tmp/headworks-hostile.parquet'
copy (select 1) to '/tmp/headworks-hostile.csv'
explain analyze copy flights to '/tmp/headworks-hostile.parquet'
select * from '/etc/passwd'
select * from "/etc/passwd"
select * from 'http://127.0.0.1:80/x'
select * from "file:///etc/passwd"
select * from read_csv('/etc/passwd')
select * from read_parquet('/etc/passwd')
select * from read_json('/etc/passwd')
select * from read_text('/etc/passwd')
select * from glob('/*')
select * from parquet_metadata('/etc/passwd')
select * from csv."/etc/passwd"
select pg_read_file('/etc/passwd')
select pg_ls_dir('/')
select lo_import('/etc/passwd')
select dblink('host=x')
select load_file('/etc/passwd')
select xp_cmdshell('id')
select getenv('HOME')
select current_setting('data_directory')
attach 'x' as y
install httpfs
load httpfs
pragma database_list
call x()
do $$ begin end $$
execute immediate 'select 1'

# fails: writes, settings and second statements
insert into flights select * from flights
with x as (delete from flights returning *) select * from x
with x as (insert into flights values (1) returning 1) select * from x
with x as (update flights set delay = 1 returning 1) select * from x
delete from flights
update flights set delay = 1
merge into flights using airlines on true when matched then delete
truncate table flights
drop table flights
alter table flights add column x int
create table x as select 1
create or replace view delays as select 1
create function f() returns int return 1
create schema s
create index i on flights (ds)
select * into x from flights
select * from flights for update
explain insert into flights values (1)
explain analyze insert into flights values (1)
describe insert into flights values (1)
select 1; drop table flights
select 1; select 2
explain select 1; drop table flights
set datafusion.runtime.memory_limit = '100G'
set role admin
reset all
show all
show datafusion.runtime.memory_limit
select * from information_schema.df_settings
select * from pg_catalog.pg_shadow
begin
commit
rollback
start transaction
savepoint x
lock table flights
prepare p as select 1
execute p
deallocate p
declare c cursor for select 1
fetch all from c
listen x
notify x
vacuum
analyze flights
grant select on flights to public
revoke select on flights from public
comment on table flights is 'x'
use other
kill 1
unload ('select 1') to 's3://x'
refresh materialized view x
flush privileges
select * from other.main.flights
select * from headworks.other.flights

# fails: clauses that would be skipped
select * from flights tablesample (10)
select * from flights for system_time as of '2020-01-01'
select * from flights at (version => 99999999999999999999)
select * from flights at (timestamp => 'never')
select 1 at (version => 1)
select * from unnest([1]) with ordinality
select * from flights match_recognize (pattern (a) define a as true)
select * from flights connect by prior ds = ds
select nothing(1)
select nothing from flights
select * from nothing
select $1
select :x
select @x
select ?
