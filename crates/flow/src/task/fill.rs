//! Fills the macros of tasks in: before the run as far as they can be told, and in it with the outputs of earlier tasks.

use std::sync::Arc;

use headworks_domain::{ErrorKind, TaskName};
use minijinja::{
    ErrorKind as TemplateErrorKind,
    value::{Object, ObjectRepr, ValueKind, merge_maps},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{EachSpec, TaskAction};
use crate::{
    connection::filled_in,
    machine::Failure,
    plan::{Each, RunPlan},
    template::{ENVIRONMENT, template_message},
};

/// The most items that a task goes through.
pub(super) const ITEMS_MAX: usize = 1000;

/// Looks a variable of our own environment up.
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl RunPlan {
    /// What a task does, with its macros and `${env:NAME}` filled in by what is known when it starts.
    ///
    /// The result may hold secrets. Errors: `TASK_MACROS`, with what is not there.
    pub fn action(
        &self,
        task: &TaskName,
        item: Option<&Value>,
        outputs: &Map<String, Value>,
        variables: Variables<'_>,
    ) -> Result<TaskAction, Failure> {
        let action = self.written(task)?;
        let mut known = vec![("outputs", minijinja::Value::from_serialize(outputs))];
        known.extend(item.map(|item| ("item", minijinja::Value::from_serialize(item))));
        fill(action, &self.context(known), Some(variables)).map_err(|unfilled| failure(task, &unfilled))
    }

    /// What a task does, as far as it can be told before the run: what later tasks get from earlier ones stays as written.
    pub fn action_foreseen(&self, task: &TaskName) -> Result<TaskAction, Failure> {
        let action = self.written(task)?;
        fill(action, &foreseen(self.macros.as_ref(), true), None).map_err(|unfilled| failure(task, &unfilled))
    }

    /// The parameters of the run: the job file's, with those that a command gave in their place.
    pub fn params(&self) -> Value {
        let params = self.macros.as_ref().and_then(|macros| macros.get_attr("params").ok());
        params.and_then(|params| serde_json::to_value(params).ok()).unwrap_or_else(|| Value::Object(Map::new()))
    }

    fn written(&self, task: &TaskName) -> Result<&TaskAction, Failure> {
        let spec = self.job.spec.tasks.get(task.as_str());
        spec.map(|spec| &spec.action).ok_or_else(|| {
            Failure::new(ErrorKind::Internal, "TASK_UNKNOWN", format!("the plan has no task `{task}` of the job file"))
        })
    }

    fn context(&self, known: Vec<(&'static str, minijinja::Value)>) -> minijinja::Value {
        with_macros(self.macros.as_ref(), known)
    }
}

fn with_macros(macros: Option<&minijinja::Value>, known: Vec<(&'static str, minijinja::Value)>) -> minijinja::Value {
    let known = minijinja::Value::from_iter(known);
    match macros {
        Some(macros) => merge_maps([known, macros.clone()]),
        None => known,
    }
}

/// The macros with stand-ins for what only the run knows.
pub(super) fn foreseen(macros: Option<&minijinja::Value>, has_item: bool) -> minijinja::Value {
    let later = |name: &'static str| (name, minijinja::Value::from_object(Later(name.to_owned())));
    let mut known = vec![later("outputs")];
    known.extend(has_item.then(|| later("item")));
    with_macros(macros, known)
}

/// Stands for a value that only the run knows: it has every key, and shows itself as it was written.
#[derive(Debug)]
struct Later(String);

impl Object for Later {
    /// No list and no map: what goes through it cannot be told before the run.
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        let path = match key.as_str() {
            Some(name) => format!("{}.{name}", self.0),
            None => format!("{}[{key}]", self.0),
        };
        Some(minijinja::Value::from_object(Self(path)))
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{{{ {} }}}}", self.0)
    }
}

/// A text that cannot be filled in.
pub(crate) struct Unfilled {
    /// Its keys below those of what was to be filled.
    pub(crate) path: Vec<String>,
    pub(crate) message: String,
    pub(crate) hint: String,
}

fn failure(task: &TaskName, unfilled: &Unfilled) -> Failure {
    let message = format!("`{}` of task `{task}` cannot be filled in: {}", unfilled.path.join("."), unfilled.message);
    Failure::new(ErrorKind::Invalid, "TASK_MACROS", message).with_hint(unfilled.hint.clone())
}

/// Fills every text of a task's action, or of the like. With `variables` it is the real thing; without, what only the run
/// knows is let be.
pub(crate) fn fill<T: Serialize + DeserializeOwned>(
    written: &T,
    context: &minijinja::Value,
    variables: Option<Variables<'_>>,
) -> Result<T, Unfilled> {
    let mut json = serde_json::to_value(written).expect("what a file says is plain data");
    let mut path = Vec::new();
    fill_texts(&mut json, &mut path, &mut |path, text| {
        let filled = match ENVIRONMENT.render_str(text, context) {
            Ok(filled) => filled,
            Err(error) if variables.is_none() && may_pass_later(text, &error) => return Ok(text.to_owned()),
            Err(error) => {
                let (message, hint) = template_message(text, &error);
                return Err(Unfilled { path: path.to_vec(), message, hint });
            }
        };
        let takes_secrets = path.first().is_some_and(|key| key == "env" || key == "headers");
        match variables.filter(|_| takes_secrets && filled.contains("${env:")) {
            None => Ok(filled),
            Some(variables) => with_variables(text, &filled, variables).map_err(|message| Unfilled {
                path: path.to_vec(),
                message,
                hint: "set it where headworks is started".to_owned(),
            }),
        }
    })?;
    serde_json::from_value(json).map_err(|error| Unfilled {
        path: Vec::new(),
        message: error.to_string(),
        hint: String::new(),
    })
}

/// Replaces `${env:NAME}` where the job file itself says so: a task's output that brings such a text brings no secret.
fn with_variables(written: &str, filled: &str, variables: Variables<'_>) -> Result<String, String> {
    let look = |name: &str| {
        let placeholder = format!("${{env:{name}}}");
        if written.contains(&placeholder) { variables(name) } else { Some(placeholder) }
    };
    filled_in("env", filled, &look).map_err(|error| error.to_string())
}

/// True for errors that a value of the run may mend, as `outputs.a.n + 1`, whose stand-in is no number.
fn may_pass_later(text: &str, error: &minijinja::Error) -> bool {
    let of_value = !matches!(
        error.kind(),
        TemplateErrorKind::UndefinedError
            | TemplateErrorKind::SyntaxError
            | TemplateErrorKind::UnknownFilter
            | TemplateErrorKind::UnknownTest
            | TemplateErrorKind::UnknownFunction
            | TemplateErrorKind::OutOfFuel
    );
    of_value && names_later(text)
}

/// True when a template names what only the run knows.
pub(super) fn names_later(text: &str) -> bool {
    let Ok(template) = ENVIRONMENT.template_from_str(text) else { return false };
    let names = template.undeclared_variables(false);
    names.contains("outputs") || names.contains("item")
}

/// The tasks whose outputs a template names.
pub(super) fn outputs_named(text: &str) -> Vec<String> {
    let Ok(template) = ENVIRONMENT.template_from_str(text) else { return Vec::new() };
    let names = template.undeclared_variables(true).into_iter();
    let mut tasks: Vec<String> =
        names.filter_map(|name| Some(name.strip_prefix("outputs.")?.split('.').next()?.to_owned())).collect();
    tasks.sort();
    tasks.dedup();
    tasks
}

/// Answers what stands in a text's place; it gets the keys on the way to it, and the text.
pub(super) type Filler<'f, E> = dyn FnMut(&[String], &str) -> Result<String, E> + 'f;

/// Calls `f` for each text of a value that has macros or secrets, with the keys on the way to it, and puts its answer there.
pub(super) fn fill_texts<E>(value: &mut Value, path: &mut Vec<String>, f: &mut Filler<'_, E>) -> Result<(), E> {
    match value {
        Value::String(text) if ["{{", "{%", "{#", "${env:"].iter().any(|mark| text.contains(mark)) => {
            *text = f(path, text)?;
        }
        Value::Array(items) => {
            for (n, item) in items.iter_mut().enumerate() {
                path.push(n.to_string());
                fill_texts(item, path, f)?;
                path.pop();
            }
        }
        Value::Object(entries) => {
            for (key, entry) in entries.iter_mut() {
                path.push(key.clone());
                fill_texts(entry, path, f)?;
                path.pop();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(())
}

/// Why a list cannot be had, and what to do.
pub(super) type NoList = (String, String);

impl EachSpec {
    /// The list as far as it is known before the run; an expression over outputs is kept for later.
    pub(crate) fn planned(&self, macros: &minijinja::Value) -> Result<Each, NoList> {
        match self {
            Self::Items(items) => {
                let mut items = Value::Array(items.clone());
                fill_texts(&mut items, &mut Vec::new(), &mut |_, text| {
                    ENVIRONMENT.render_str(text, macros).map_err(|error| template_message(text, &error))
                })?;
                let Value::Array(items) = items else { return Ok(Each::Items(Vec::new())) };
                bounded(items).map(Each::Items)
            }
            Self::Expression(text) => {
                let expression = expression_of(text)?;
                if names_later(text) {
                    return Ok(Each::Later(expression.to_owned()));
                }
                list_of(expression, macros).map(Each::Items)
            }
        }
    }
}

/// The expression within `{{ ... }}`.
pub(super) fn expression_of(text: &str) -> Result<&str, NoList> {
    let inner = text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
    inner.filter(|inner| !inner.contains("}}") && !inner.contains("{{")).map(str::trim).ok_or_else(|| {
        let message = "`each` is neither a list nor one expression".to_owned();
        (message, "write it as `[a, b]` or `\"{{ outputs.list.files }}\"`".to_owned())
    })
}

/// The items of a task, in the run. Errors: `FLOW_EACH`, when there is no list or it is too long.
pub(crate) fn items(
    task: &TaskName,
    each: &Each,
    macros: Option<&minijinja::Value>,
    outputs: &Map<String, Value>,
) -> Result<Vec<Value>, Failure> {
    let expression = match each {
        Each::Items(items) => return Ok(items.clone()),
        Each::Later(expression) => expression,
    };
    let context = with_macros(macros, vec![("outputs", minijinja::Value::from_serialize(outputs))]);
    list_of(expression, &context).map_err(|(message, hint)| {
        Failure::new(ErrorKind::Invalid, "FLOW_EACH", format!("the list of task `{task}` cannot be had: {message}"))
            .with_hint(hint)
    })
}

fn list_of(expression: &str, context: &minijinja::Value) -> Result<Vec<Value>, NoList> {
    let told = |error: minijinja::Error| template_message(expression, &error);
    let value = ENVIRONMENT.compile_expression(expression).map_err(told)?.eval(context).map_err(told)?;
    let hint = "it has to be a list, as a task before it gives by writing JSON to $HEADWORKS_OUTPUT";
    match value.kind() {
        ValueKind::Undefined => Err((format!("`{expression}` is not there"), hint.to_owned())),
        ValueKind::Seq | ValueKind::Iterable => match serde_json::to_value(&value) {
            Ok(Value::Array(items)) => bounded(items),
            _ => Err((format!("`{expression}` is no list of plain values"), hint.to_owned())),
        },
        other => Err((format!("`{expression}` is a {other}, not a list"), hint.to_owned())),
    }
}

fn bounded(items: Vec<Value>) -> Result<Vec<Value>, NoList> {
    if items.len() > ITEMS_MAX {
        let message = format!("it has {} items, and {ITEMS_MAX} is the most", items.len());
        return Err((message, "let one item stand for many, as a list of lists".to_owned()));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::{Command, ProcessSpec, ShellTask};

    fn action(command: &str, env: &str) -> TaskAction {
        let process = ProcessSpec { env: [("X".to_owned(), env.to_owned())].into(), ..ProcessSpec::default() };
        TaskAction::Shell(ShellTask { command: Command::Text(command.to_owned()), process })
    }

    fn macros() -> minijinja::Value {
        minijinja::Value::from_iter([("ds", minijinja::Value::from("2026-01-01"))])
    }

    /// The command and the variable `X` as filled in the run.
    fn filled(command: &str, env: &str) -> Result<(String, String), String> {
        let outputs = json!({"list": {"n": 2, "bad": "${env:SECRET}"}});
        let known = vec![("outputs", minijinja::Value::from_serialize(&outputs))];
        let look = |name: &str| (name == "TOKEN").then(|| "t0p".to_owned());
        match fill(&action(command, env), &with_macros(Some(&macros()), known), Some(&look)) {
            Ok(TaskAction::Shell(ShellTask { command: Command::Text(command), process })) => {
                Ok((command, process.env["X"].clone()))
            }
            Ok(other) => panic!("{other:?}"),
            Err(unfilled) => Err(format!("{}: {} ({})", unfilled.path.join("."), unfilled.message, unfilled.hint)),
        }
    }

    #[test]
    fn texts_are_filled_in() {
        let check = |command: &str, env: &str, expected: (&str, &str)| {
            assert_eq!(filled(command, env), Ok((expected.0.to_owned(), expected.1.to_owned())));
        };
        check("echo {{ ds }} {{ outputs.list.n + 1 }}", "", ("echo 2026-01-01 3", ""));
        check("echo ${env:TOKEN}", "a ${env:TOKEN}", ("echo ${env:TOKEN}", "a t0p"));
        check("{{ outputs.list | tojson }}", "", (r#"{"bad":"${env:SECRET}","n":2}"#, ""));
        check("", "${env:TOKEN} {{ outputs.list.bad }}", ("", "t0p ${env:SECRET}"));
        assert_eq!(
            filled("{{ outputs.lst.n }}", ""),
            Err("command: `outputs.lst.n` is not there (a task before it gives it by writing JSON to $HEADWORKS_OUTPUT)"
                .to_owned())
        );
        assert!(filled("", "${env:GONE}").unwrap_err().contains("`GONE` is not set"));
    }

    #[test]
    fn what_only_the_run_knows_stays_as_written() {
        let shown = fill(
            &action("{{ ds }} {{ outputs.a.b[0] }} {{ item }}", "{{ outputs.a + 1 }}"),
            &foreseen(Some(&macros()), true),
            None,
        );
        let Ok(TaskAction::Shell(shown)) = shown else { panic!("it can be shown") };
        assert_eq!(shown.command, Command::Text("2026-01-01 {{ outputs.a.b[0] }} {{ item }}".to_owned()));
        assert_eq!(shown.process.env["X"], "{{ outputs.a + 1 }}");
        for text in
            ["{{ outputs.a | join(',') }}", "{% for x in outputs.a %}{{ x }}{% endfor %}", "{{ outputs.a | tojson }}"]
        {
            let Ok(TaskAction::Shell(shown)) = fill(&action(text, ""), &foreseen(None, true), None) else {
                panic!("{text}")
            };
            assert_eq!(shown.command, Command::Text(text.to_owned()));
        }
        assert_eq!(outputs_named("{{ outputs.a.b }} {% if outputs.c %}{% endif %}"), ["a", "c"]);
    }

    #[test]
    fn lists_are_had_from_outputs() {
        let outputs = json!({"list": {"files": ["a", 1, {"k": null}], "n": 3, "many": vec![0; 1001]}});
        let Value::Object(outputs) = outputs else { panic!() };
        let task = "load".parse().unwrap();
        let had = |text: &str| match EachSpec::Expression(text.to_owned()).planned(&macros()) {
            Ok(each) => items(&task, &each, Some(&macros()), &outputs).map_err(|f| f.message),
            Err((message, _)) => Err(message),
        };
        assert_eq!(had("{{ outputs.list.files }}"), Ok(vec![json!("a"), json!(1), json!({"k": null})]));
        assert_eq!(had("{{ range(2) }}"), Ok(vec![json!(0), json!(1)]));
        assert_eq!(had("{{ [ds] }}"), Ok(vec![json!("2026-01-01")]));
        let no = "the list of task `load` cannot be had: ";
        assert_eq!(had("{{ outputs.list.n }}"), Err(format!("{no}`outputs.list.n` is a number, not a list")));
        assert_eq!(had("{{ outputs.list.no }}"), Err(format!("{no}`outputs.list.no` is not there")));
        assert_eq!(had("{{ outputs.list.many }}"), Err(format!("{no}it has 1001 items, and 1000 is the most")));
        assert_eq!(had("outputs.list.files"), Err("`each` is neither a list nor one expression".to_owned()));
    }
}
