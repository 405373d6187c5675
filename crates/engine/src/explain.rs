//! `EXPLAIN` and `EXPLAIN ANALYZE` for people: a line for each step of a plan, without what only hands rows on.
//!
//! `EXPLAIN VERBOSE` is left to DataFusion, which shows each node and each pass of its optimizer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    datasource::{listing::PartitionedFile, physical_plan::FileScanConfig, source::DataSourceExec},
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext, object_store::ObjectStoreUrl},
    logical_expr::LogicalPlan,
    physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        coalesce_partitions::CoalescePartitionsExec,
        execution_plan::{Boundedness, EmissionType},
        metrics::{MetricValue, MetricsSet},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{TryStreamExt, stream};
use headworks_domain::{bytes, count, counted};

use crate::shared::SharedExec;

/// The one column, named as in PostgreSQL.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("QUERY PLAN", DataType::Utf8, false)]))
}

/// A plan that is not run.
pub(crate) fn plan(plan: &Arc<dyn ExecutionPlan>, reads: String) -> Result<RecordBatch> {
    let mut steps = Vec::new();
    collect(plan, 0, &mut steps, &mut HashMap::new());
    batch(steps.into_iter().map(|step| step.text).chain([reads]).collect())
}

/// The tables that a plan reads, with their versions where it names some.
pub(crate) fn reads(plan: &LogicalPlan) -> Result<String> {
    let mut tables = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            tables.insert(scan.table_name.to_string());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(match tables.is_empty() {
        true => "Reads no table.".to_owned(),
        false => format!("Reads {}.", tables.into_iter().collect::<Vec<_>>().join(", ")),
    })
}

/// What is told of a plan besides its steps.
#[derive(Debug, Clone)]
pub(crate) struct Besides {
    /// The tables that it reads.
    pub(crate) reads: String,
    /// How long it took to plan.
    pub(crate) planned_in: Duration,
}

/// Runs a plan to its end, leaves its rows out, and tells what each step did.
#[derive(Debug)]
pub(crate) struct AnalyzeExec {
    input: Arc<dyn ExecutionPlan>,
    besides: Besides,
    properties: Arc<PlanProperties>,
}

impl AnalyzeExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, besides: Besides) -> Self {
        let input = match input.output_partitioning().partition_count() {
            1 => input,
            _ => Arc::new(CoalescePartitionsExec::new(input)) as _,
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { input, besides, properties: Arc::new(properties) }
    }
}

impl DisplayAs for AnalyzeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnalyzeExec")
    }
}

impl ExecutionPlan for AnalyzeExec {
    fn name(&self) -> &str {
        "AnalyzeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self::new(input, self.besides.clone()))),
            Err(_) => Err(DataFusionError::Internal("one plan is analyzed".to_owned())),
        }
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut rows = self.input.execute(0, context)?;
        let (input, besides) = (Arc::clone(&self.input), self.besides.clone());
        let lines = async move {
            let begun = Instant::now();
            while rows.try_next().await?.is_some() {}
            analyzed(&input, besides, begun.elapsed())
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), stream::once(lines))))
    }
}

/// The steps with what they did before them, and what the whole took.
fn analyzed(plan: &Arc<dyn ExecutionPlan>, besides: Besides, ran_in: Duration) -> Result<RecordBatch> {
    let mut steps = Vec::new();
    collect(plan, 0, &mut steps, &mut HashMap::new());
    let mut lines = vec![format!("{:>14} {:>10}  step", "rows", "time")];
    for Step { text, did } in &steps {
        let rows = did.rows.map(count).unwrap_or_default();
        let time = did.time.map(millis).unwrap_or_default();
        let more = [("memory", did.memory_bytes), ("read", did.read_bytes), ("spilled", did.spilled_bytes)];
        let more = more.into_iter().filter(|(_, size)| *size > 0);
        let mut more: Vec<String> = more.map(|(what, size)| format!("{what} {}", bytes(size))).collect();
        more.extend(did.skipped.map(|(skipped, of)| format!("{skipped} of {of} row groups left out")));
        let more = if more.is_empty() { String::new() } else { format!("  [{}]", more.join(", ")) };
        lines.push(format!("{rows:>14} {time:>10}  {text}{more}"));
    }
    lines.push(besides.reads);
    // Of the steps that are shown: what was read behind a grant would tell of rows that are hidden.
    lines.push(format!(
        "Planned in {}, ran in {}; read {}, spilled {}. A step's time is that of all threads together.",
        millis(besides.planned_in),
        millis(ran_in),
        bytes(steps.iter().map(|step| step.did.read_bytes).sum()),
        bytes(steps.iter().map(|step| step.did.spilled_bytes).sum())
    ));
    batch(lines)
}

fn batch(lines: Vec<String>) -> Result<RecordBatch> {
    Ok(RecordBatch::try_new(schema(), vec![Arc::new(StringArray::from(lines))])?)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// One line.
struct Step {
    text: String,
    did: Did,
}

/// What a step did, by its metrics.
#[derive(Default)]
struct Did {
    rows: Option<u64>,
    time: Option<Duration>,
    memory_bytes: u64,
    read_bytes: u64,
    spilled_bytes: u64,
    /// Row groups that statistics left out, and of how many.
    skipped: Option<(u64, u64)>,
}

/// Nodes that only hand rows on, in another order or to other threads.
const PLUMBING: [&str; 7] = [
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "PauseExec",
    "RepartitionExec",
    "SortPreservingMergeExec",
    "BufferExec",
];

/// Adds the steps of a plan. What is computed once has a number, and its steps stand with the first who reads it.
fn collect(
    node: &Arc<dyn ExecutionPlan>,
    depth: usize,
    steps: &mut Vec<Step>,
    shared: &mut HashMap<*const dyn ExecutionPlan, usize>,
) {
    let mut children = node.children();
    if let [child] = children[..]
        && PLUMBING.contains(&node.name())
    {
        let at = steps.len();
        collect(child, depth, steps, shared);
        // Rows on their way may be spilled too: it is told with the step that made them.
        steps[at].did.spilled_bytes += node.metrics().map_or(0, |metrics| did(&metrics).spilled_bytes);
        return;
    }
    let arrow = if depth == 0 { String::new() } else { format!("{}-> ", "   ".repeat(depth - 1)) };
    let did = node.metrics().map(|metrics| did(&metrics)).unwrap_or_default();
    let mut text = shown(node);
    if let Some(reader) = node.downcast_ref::<SharedExec>() {
        let next = shared.len() + 1;
        let number = *shared.entry(Arc::as_ptr(reader.inner())).or_insert(next);
        text = if number == next { format!("Shared {number}") } else { format!("Shared {number}, as above") };
        children.extend((number == next).then_some(reader.inner()));
    }
    steps.push(Step { text: format!("{arrow}{text}"), did });
    for child in children {
        collect(child, depth + 1, steps, shared);
    }
}

fn did(metrics: &MetricsSet) -> Did {
    let mut did = Did { rows: metrics.output_rows().map(|rows| rows as u64), ..Did::default() };
    let nanos = |nanos: usize| Duration::from_nanos(nanos as u64);
    did.time = metrics.elapsed_compute().map(nanos);
    for metric in metrics.iter() {
        match metric.value() {
            // A scan counts the time that it takes to read and decode by itself.
            MetricValue::Time { name, time } if name == "time_elapsed_processing" => {
                did.time = Some(did.time.unwrap_or_default() + nanos(time.value()));
            }
            MetricValue::Count { name, count } if name == "bytes_scanned" => did.read_bytes += count.value() as u64,
            MetricValue::Gauge { name, gauge } if name == "build_mem_used" || name == "peak_mem_used" => {
                did.memory_bytes += gauge.value() as u64;
            }
            MetricValue::SpilledBytes(count) => did.spilled_bytes += count.value() as u64,
            MetricValue::PruningMetrics { name, pruning_metrics } if name == "row_groups_pruned_statistics" => {
                let (skipped, of) = did.skipped.unwrap_or_default();
                let (pruned, matched) = (pruning_metrics.pruned() as u64, pruning_metrics.matched() as u64);
                did.skipped = Some((skipped + pruned, of + pruned + matched));
            }
            _ => {}
        }
    }
    did.skipped = did.skipped.filter(|(skipped, _)| *skipped > 0);
    did
}

/// The most characters of a step's expressions.
const DETAIL_CHARS_MAX: usize = 300;

/// A step in words.
fn shown(node: &Arc<dyn ExecutionPlan>) -> String {
    let detail = Detail(node.as_ref()).to_string();
    let lines = detail.lines().map(str::trim).filter(|line| !line.is_empty());
    let (name, details): (String, Vec<String>) = match scan(node) {
        Some((name, detail)) => (name, [detail].into_iter().chain(lines.filter_map(condition)).collect()),
        None => (words(node.name()), lines.filter_map(|line| expression(node.name(), line)).collect()),
    };
    let mut details = details.join(", ");
    if let Some((end, _)) = details.char_indices().nth(DETAIL_CHARS_MAX) {
        details.truncate(end);
        details.push('…');
    }
    if details.is_empty() { name } else { format!("{name}: {details}") }
}

/// A scan of files: their folder, which is named like the table when that was never renamed, and how much there is. Rows in
/// memory are those of a VALUES, or of a table so small that the catalog has it.
fn scan(node: &Arc<dyn ExecutionPlan>) -> Option<(String, String)> {
    let source = node.downcast_ref::<DataSourceExec>()?.data_source();
    let schema = node.schema();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let columns = if columns.is_empty() { String::new() } else { format!(", columns {}", columns.join(" ")) };
    let Some(scan) = source.downcast_ref::<FileScanConfig>() else {
        let rows = source.partition_statistics(None).ok().and_then(|known| known.num_rows.get_value().copied());
        let rows = rows.map(|rows| counted(rows as u64, "row")).unwrap_or_default();
        return Some(("Scan of memory".to_owned(), format!("{rows}{columns}")));
    };
    // Several threads may have parts of one file.
    let files: BTreeMap<_, _> = scan.file_groups.iter().flat_map(|group| group.files()).map(place).collect();
    let size = files.values().sum();
    let table = match files.keys().next() {
        // One that another tool took into the lake where it was: where that is concerns nobody here.
        _ if scan.object_store_url == ObjectStoreUrl::local_filesystem() => "files outside of the lake".to_owned(),
        file => file.map(|file| split(file).0).unwrap_or_default(),
    };
    let partitions: BTreeSet<String> = files.keys().map(|file| split(file).1).filter(|p| !p.is_empty()).collect();
    let partitions = match (partitions.first(), partitions.last(), partitions.len()) {
        (Some(only), _, 1) => format!(" in {only}"),
        (Some(first), Some(last), n) => format!(" in {} from {first} to {last}", counted(n as u64, "partition")),
        _ => String::new(),
    };
    let files = counted(files.len() as u64, "file");
    Some((format!("Scan of {table}"), format!("{files} of {}{partitions}{columns}", bytes(size))))
}

fn place(file: &PartitionedFile) -> (&str, u64) {
    (file.object_meta.location.as_ref(), file.object_meta.size)
}

/// The folder of a table and that of a partition below it: `main/orders` and `ds=2013-01-01`.
fn split(file: &str) -> (String, String) {
    let folders: Vec<&str> = file.split('/').collect();
    let (folders, _name) = folders.split_at(folders.len().saturating_sub(1));
    let table = folders.iter().position(|folder| folder.contains('=')).unwrap_or(folders.len());
    (folders[..table].join("/"), folders[table..].join("/"))
}

/// What a scan leaves out.
fn condition(line: &str) -> Option<String> {
    let condition = line.strip_prefix("predicate=")?;
    // What a join finds out while it runs.
    Some(match condition.find("DynamicFilter") {
        Some(at) => format!("where {}what a join leaves", &condition[..at]),
        None => format!("where {condition}"),
    })
}

/// A line of DataFusion's about a step as people read it; `None` when it says nothing to them.
fn expression(step: &str, line: &str) -> Option<String> {
    // What a `count(*)` is to the planner.
    let line = line.replace("count(Int64(1))", "count(*)");
    match (step, line.split_once('=')) {
        ("ProjectionExec", Some((name, column))) if name == column => Some(column.to_owned()),
        ("ProjectionExec", _) => Some(line),
        ("AggregateExec", _) => Some(line.replace("count(1)", "count(*)")).filter(|line| line != "mode=Single"),
        (_, Some(("predicate" | "on", rest))) => Some(rest.to_owned()),
        _ => Some(line),
    }
}

/// `HashJoinExec` as `Hash join`.
fn words(name: &str) -> String {
    let mut words = String::new();
    let (name, _kind) = name.split_once("Exec").unwrap_or((name, ""));
    for letter in name.chars() {
        match letter {
            letter if words.is_empty() => words.push(letter),
            letter if letter.is_uppercase() => words.extend([' '].into_iter().chain(letter.to_lowercase())),
            letter => words.push(letter),
        }
    }
    words
}

/// What DataFusion tells of a node in its own trees, a line each.
struct Detail<'a>(&'a dyn ExecutionPlan);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as(DisplayFormatType::TreeRender, f)
    }
}
