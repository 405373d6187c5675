//! Functions of PostgreSQL that clients call about the server, the session and the catalog.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    arrow::datatypes::DataType,
    common::exec_err,
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility},
    scalar::ScalarValue,
};

use super::{PG_VERSION, PgSession};
use crate::resolve::{CATALOG, PG_SCHEMA};

fn text(value: &str) -> ScalarValue {
    ScalarValue::Utf8(Some(value.to_owned()))
}

/// Functions that say the same to everybody.
pub(super) fn all() -> Vec<ScalarUDF> {
    let yes = [
        "pg_function_is_visible",
        "pg_type_is_visible",
        "pg_operator_is_visible",
        "pg_opclass_is_visible",
        "pg_collation_is_visible",
        "has_function_privilege",
        "has_column_privilege",
        "has_sequence_privilege",
        "has_type_privilege",
        "has_language_privilege",
        "has_tablespace_privilege",
        "has_foreign_data_wrapper_privilege",
        "has_server_privilege",
        "pg_has_role",
    ];
    let no = ["pg_is_in_recovery", "pg_is_other_temp_schema", "pg_try_advisory_lock", "pg_index_has_property"];
    let nothing = [
        "obj_description",
        "col_description",
        "shobj_description",
        "pg_get_viewdef",
        "pg_get_indexdef",
        "pg_get_ruledef",
        "pg_get_triggerdef",
        "pg_get_functiondef",
        "pg_get_function_sqlbody",
        "pg_get_function_arg_default",
        "pg_get_serial_sequence",
        "pg_tablespace_location",
        "pg_get_constraintdef",
        "inet_client_addr",
        "inet_server_addr",
        "pg_advisory_unlock_all",
    ];
    let zero = [
        "pg_my_temp_schema",
        "txid_current",
        "pg_current_xact_id",
        "inet_client_port",
        "inet_server_port",
        "pg_relation_filenode",
    ];
    let bytes = [
        "pg_database_size",
        "pg_table_size",
        "pg_indexes_size",
        "pg_relation_size",
        "pg_total_relation_size",
        "pg_tablespace_size",
    ];
    let empty = ["pg_get_function_result", "pg_get_function_arguments", "pg_get_function_identity_arguments"];
    let mut functions = vec![Constant::of("version", text(PG_VERSION))];
    let mut add = |names: &[&str], value: &ScalarValue| {
        functions.extend(names.iter().map(|name| Constant::of(name, value.clone())));
    };
    add(&yes, &ScalarValue::Boolean(Some(true)));
    add(&no, &ScalarValue::Boolean(Some(false)));
    add(&nothing, &ScalarValue::Utf8(None));
    add(&zero, &ScalarValue::Int64(Some(0)));
    add(&bytes, &ScalarValue::Int64(Some(0)));
    add(&empty, &text(""));
    add(&["current_schema"], &text(PG_SCHEMA));
    add(&["current_database", "current_catalog"], &text(CATALOG));
    add(&["pg_client_encoding", "pg_encoding_to_char"], &text("UTF8"));
    add(&["pg_get_userbyid"], &text(CATALOG));
    functions
}

/// Functions that say something else in each session; none for other names.
pub(crate) fn session_function(name: &str, user: &str, session: &PgSession) -> Option<Arc<ScalarUDF>> {
    let function = match name {
        "current_user" | "session_user" | "user" | "current_role" | "getpgusername" => Constant::of(name, text(user)),
        "pg_backend_pid" => Constant::of(name, ScalarValue::Int32(Some(session.pid))),
        "current_setting" => Setting::of(name, session),
        "set_config" => Setting::of(name, session),
        _ => return None,
    };
    Some(Arc::new(function))
}

/// A function that gives one value whatever it is asked.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: String,
    value: ScalarValue,
    signature: Signature,
}

impl Constant {
    fn of(name: &str, value: ScalarValue) -> ScalarUDF {
        ScalarUDF::from(Self { name: name.to_owned(), value, signature: any_arguments() })
    }
}

/// Stable, so that no result with it is kept for somebody else.
fn any_arguments() -> Signature {
    Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], Volatility::Stable)
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}

/// `current_setting` and `set_config`; the latter changes nothing and says what it was given.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Setting {
    name: String,
    settings: BTreeMap<String, String>,
    signature: Signature,
}

impl Setting {
    fn of(name: &str, session: &PgSession) -> ScalarUDF {
        let settings = session.settings.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        ScalarUDF::from(Self { name: name.to_owned(), settings, signature: any_arguments() })
    }
}

impl ScalarUDFImpl for Setting {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let argument = |n: usize| match arguments.args.get(n) {
            Some(ColumnarValue::Scalar(value)) => Some(value),
            _ => None,
        };
        let of = |n: usize| argument(n).and_then(|value| value.try_as_str().flatten().map(str::to_owned));
        let value = match self.name.as_str() {
            "set_config" => of(1),
            _ => {
                let Some(name) = of(0) else { return Ok(ColumnarValue::Scalar(ScalarValue::Utf8(None))) };
                let may_be_missing = argument(1) == Some(&ScalarValue::Boolean(Some(true)));
                match self.settings.get(&name.to_lowercase()) {
                    None if !may_be_missing => return exec_err!("there is no setting `{name}`"),
                    found => found.cloned(),
                }
            }
        };
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(value)))
    }
}
