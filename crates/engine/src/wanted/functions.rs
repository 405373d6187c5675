//! Functions that look whether they are wanted when they are asked what they give, and when they are called.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::{
    common::{
        ExprSchema, ScalarValue, plan_err,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    config::ConfigOptions,
    error::Result,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        ColumnarValue, Documentation, Expr, ExpressionPlacement, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
        ScalarUDFImpl, Signature, StructFieldMapping,
        interval_arithmetic::Interval,
        preimage::PreimageResult,
        simplify::{ExprSimplifyResult, SimplifyContext},
        sort_properties::{ExprProperties, SortProperties},
    },
};

use super::{count_constant, look};

/// Lets functions look that do not yet, and makes their other names functions by themselves: for a call by another name
/// DataFusion writes its arguments out beside it, and those of such calls in it twice as long with each.
pub(crate) fn watch_functions(state: &mut SessionState) -> Result<()> {
    let unwatched = |(name, function): (&String, &Arc<ScalarUDF>)| {
        let is_left = function.inner().is::<Watched>() || KNOWN_BY_TYPE.contains(&function.name());
        (!is_left).then(|| Watched { name: name.clone(), function: Arc::clone(function) })
    };
    let functions: Vec<_> = state.scalar_functions().iter().filter_map(unwatched).collect();
    for function in functions {
        state.register_udf(Arc::new(ScalarUDF::from(function)))?;
    }
    Ok(())
}

/// Functions that DataFusion's optimizer and Parquet reader know by their type.
const KNOWN_BY_TYPE: [&str; 1] = ["get_field"];

/// The function itself, without what looks.
pub(crate) fn unwatched(function: &ScalarUDF) -> &ScalarUDF {
    function.inner().downcast_ref::<Watched>().map_or(function, |watched| &watched.function)
}

/// The most parts of a type: some steps of the planner go through all of them, and structs of the same struct twice double.
const TYPE_PARTS_MAX: usize = 10_000;

/// Counts the parts of a type until there are more than so many.
fn count_parts(data_type: &DataType, left: &mut usize) {
    *left = left.saturating_sub(1);
    let mut each = |field: &FieldRef| {
        if *left > 0 {
            count_parts(field.data_type(), left);
        }
    };
    match data_type {
        DataType::Struct(fields) => fields.iter().for_each(each),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => each(field),
        _ => {}
    }
}

/// The most parts of what is given to a function: `coalesce` and its kin become a CASE that has some of them twice.
const EXPRESSION_PARTS_MAX: usize = 100_000;

/// Counts an expression's parts, up to one more than so many.
fn count_nodes(expr: &Expr, most: usize) -> usize {
    let mut count = 0;
    let counted = expr.apply(|_| {
        count += 1;
        Ok(if count > most { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    counted.map_or(usize::MAX, |_| count)
}

/// A function that looks when it is asked what it gives, and gives no type that is too large.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Watched {
    /// Its own, or one of its aliases.
    name: String,
    function: Arc<ScalarUDF>,
}

impl Watched {
    fn checked(&self, data_type: &DataType) -> Result<()> {
        let mut left = TYPE_PARTS_MAX + 1;
        count_parts(data_type, &mut left);
        match left {
            0 => plan_err!("`{}` would make a type of more than {TYPE_PARTS_MAX} parts", self.name),
            _ => Ok(()),
        }
    }
}

/// All else is the function's own.
#[warn(clippy::missing_trait_methods)]
impl ScalarUDFImpl for Watched {
    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        look()?;
        let data_type = self.function.return_type(types)?;
        self.checked(&data_type).map(|()| data_type)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        look()?;
        let field = self.function.return_field_from_args(args)?;
        self.checked(field.data_type()).map(|()| field)
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        look()?;
        if self.name == self.function.name() {
            return self.function.schema_name(args);
        }
        let args: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(format!("{}({})", self.name, args.join(",")))
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn aliases(&self) -> &[String] {
        &[]
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        #[expect(deprecated, reason = "it has to be handed on as long as it is there")]
        self.function.inner().display_name(args)
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn is_nullable(&self, args: &[Expr], schema: &dyn ExprSchema) -> bool {
        #[expect(deprecated, reason = "it has to be handed on as long as it is there")]
        self.function.inner().is_nullable(args, schema)
    }

    fn is_strict(&self) -> bool {
        self.function.inner().is_strict()
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        self.function
            .inner()
            .with_updated_config(config)
            .map(|function| ScalarUDF::from(Self { name: self.name.clone(), function: Arc::new(function) }))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        look()?;
        let value = self.function.invoke_with_args(args)?;
        count_constant(&value).map(|()| value)
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        look()?;
        if args.iter().map(|arg| count_nodes(arg, EXPRESSION_PARTS_MAX)).sum::<usize>() > EXPRESSION_PARTS_MAX {
            return plan_err!(
                "what is written in `{}` has more than {EXPRESSION_PARTS_MAX} parts once all in it is written out; let a WITH or \
                 a subquery compute the inner ones",
                self.name
            );
        }
        self.function.simplify(args, context)
    }

    fn preimage(&self, args: &[Expr], literal: &Expr, context: &SimplifyContext) -> Result<PreimageResult> {
        self.function.inner().preimage(args, literal, context)
    }

    fn short_circuits(&self) -> bool {
        self.function.short_circuits()
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.function.conditional_arguments(args)
    }

    fn evaluate_bounds(&self, inputs: &[&Interval]) -> Result<Interval> {
        self.function.evaluate_bounds(inputs)
    }

    fn propagate_constraints(&self, interval: &Interval, inputs: &[&Interval]) -> Result<Option<Vec<Interval>>> {
        self.function.propagate_constraints(interval, inputs)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.function.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.function.preserves_lex_ordering(inputs)
    }

    fn strictly_order_preserving(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.function.inner().strictly_order_preserving(inputs)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(types)
    }

    fn struct_field_mapping(&self, literals: &[Option<ScalarValue>]) -> Option<StructFieldMapping> {
        self.function.inner().struct_field_mapping(literals)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn placement(&self, args: &[ExpressionPlacement]) -> ExpressionPlacement {
        self.function.inner().placement(args)
    }
}
