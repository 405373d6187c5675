use std::sync::Arc;

use datafusion::{
    common::{
        Column, DFSchema,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, Projection, Window, expr::WindowFunction},
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

/// Makes columns of what windows calculate with whole numbers: a projection sees when a sum does not fit, and a window does not.
#[derive(Debug)]
pub(crate) struct WindowColumns;

impl OptimizerRule for WindowColumns {
    fn name(&self) -> &str {
        "window_columns"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Window(window) = &plan else { return Ok(Transformed::no(plan)) };
        let input = window.input.schema();
        let mut made = Vec::new();
        let mut functions = Vec::new();
        for function in &window.window_expr {
            functions.push(
                function
                    .clone()
                    .transform_down(|expr| match expr {
                        Expr::WindowFunction(call) => {
                            let call = over_columns(*call, input, &mut made)?;
                            Ok(Transformed::new(Expr::WindowFunction(Box::new(call)), true, TreeNodeRecursion::Jump))
                        }
                        other => Ok(Transformed::no(other)),
                    })?
                    .data,
            );
        }
        if made.is_empty() {
            return Ok(Transformed::no(plan));
        }
        let columns = input.columns().into_iter().map(Expr::Column);
        let made = made.into_iter().enumerate().map(|(index, expr)| {
            let Column { relation, name, .. } = name_of(index);
            expr.alias_qualified(relation, name)
        });
        let below = Projection::try_new(columns.chain(made).collect(), Arc::clone(&window.input))?;
        let below_columns = below.schema.fields().len();
        let changed = Window::try_new(functions, Arc::new(LogicalPlan::Projection(below)))?;
        // The columns as they were, in order and name.
        let given = changed.schema.columns().into_iter().skip(below_columns).map(Expr::Column);
        let named = given.zip(window.schema.iter().skip(input.fields().len()));
        let named = named.map(|(given, (table, field))| given.alias_qualified(table.cloned(), field.name()));
        let shown = input.columns().into_iter().map(Expr::Column).chain(named).collect();
        let above =
            Projection::try_new_with_schema(shown, Arc::new(LogicalPlan::Window(changed)), Arc::clone(&window.schema))?;
        Ok(Transformed::yes(LogicalPlan::Projection(above)))
    }
}

fn name_of(index: usize) -> Column {
    Column::new(Some("__window"), index.to_string())
}

/// The same call of columns; those that are still to be made are added.
fn over_columns(mut call: WindowFunction, input: &DFSchema, made: &mut Vec<Expr>) -> Result<WindowFunction> {
    let mut column = |expr: &mut Expr| -> Result<()> {
        if calculates(expr, input)? {
            let at = made.iter().position(|known| known == expr).unwrap_or(made.len());
            if at == made.len() {
                made.push(expr.clone());
            }
            *expr = Expr::Column(name_of(at));
        }
        Ok(())
    };
    let params = &mut call.params;
    params.args.iter_mut().chain(&mut params.partition_by).try_for_each(&mut column)?;
    params.order_by.iter_mut().try_for_each(|key| column(&mut key.expr))?;
    if let Some(filter) = &mut params.filter {
        column(filter)?;
    }
    Ok(call)
}

/// True for what has a sum, a difference or a product of whole numbers in it.
fn calculates(expr: &Expr, schema: &DFSchema) -> Result<bool> {
    let mut found = false;
    is_whole(expr, schema, &mut found)?;
    Ok(found)
}

/// True for a whole number. Found once for each part, from those below: asked of each part anew a long sum takes the square of its
/// length.
fn is_whole(expr: &Expr, schema: &DFSchema, found: &mut bool) -> Result<bool> {
    if let Expr::BinaryExpr(BinaryExpr { left, op, right }) = expr {
        let sides = is_whole(left, schema, found)? & is_whole(right, schema, found)?;
        *found |= sides && matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply);
        return Ok(sides && op.is_numerical_operators());
    }
    expr.apply_children(|part| {
        is_whole(part, schema, found)?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(!*found && expr.get_type(schema)?.is_signed_integer())
}
