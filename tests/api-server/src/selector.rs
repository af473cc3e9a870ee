//! Label and field selectors, as they stand in a request's query.

use serde_json::Value;

use crate::{json::text_at, resource::Resource};

/// A label selector: all of its requirements must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let requirements = split_outside_parentheses(text)
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(Requirement::parse)
            .collect::<Result<_, _>>();
        requirements
            .map(Self)
            .map_err(|why| format!("unable to parse requirement: {why}"))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.0
            .iter()
            .all(|requirement| requirement.holds(labels[&requirement.key].as_str()))
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut from, mut depth) = (0, 0_usize);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

impl Requirement {
    fn parse(part: &str) -> Result<Self, String> {
        let one = |value: &str| vec![value.trim().to_owned()];
        let number = |value: &str| {
            let value = value.trim();
            value
                .parse()
                .map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer: {value:?}"))
        };
        let (key, operator) = if let Some(key) = part.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else if let Some((key, rest)) = part.split_once(char::is_whitespace)
            && let Some(operator) = set_operator(rest.trim())
        {
            (key, operator?)
        } else if let Some((key, value)) = part.split_once("!=") {
            (key, Operator::NotIn(one(value)))
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (key, Operator::In(one(value)))
        } else if let Some((key, value)) = part.split_once('>') {
            (key, Operator::GreaterThan(number(value)?))
        } else if let Some((key, value)) = part.split_once('<') {
            (key, Operator::LessThan(number(value)?))
        } else {
            (part, Operator::Exists)
        };
        let key = key.trim();
        let legal = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
        if key.is_empty() || !key.chars().all(legal) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        Ok(Self {
            key: key.to_owned(),
            operator,
        })
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => among(values),
            // An object without the label matches, as documented.
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(bound) => number().is_some_and(|number| number > *bound),
            Operator::LessThan(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

/// `in (a,b)` and `notin (a,b)`; nothing where there is no such word.
fn set_operator(text: &str) -> Option<Result<Operator, String>> {
    let (values, make): (_, fn(Vec<String>) -> Operator) = if let Some(values) = text.strip_prefix("notin") {
        (values, Operator::NotIn)
    } else {
        (text.strip_prefix("in")?, Operator::In)
    };
    let inside = values
        .trim()
        .strip_prefix('(')
        .and_then(|values| values.strip_suffix(')'));
    Some(match inside {
        Some(inside) => Ok(make(
            inside.split(',').map(|value| value.trim().to_owned()).collect(),
        )),
        None => Err(format!("found '{}', expected: '('", values.trim())),
    })
}

/// A field selector: all of its terms must hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    /// Reads `a=b,c!=d`, of the fields that the resource can be selected by.
    pub(crate) fn parse(text: &str, resource: &Resource) -> Result<Self, String> {
        let mut terms = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            if !resource.selectable(field) {
                return Err(format!("field label not supported: {field}"));
            }
            terms.push((field.to_owned(), equal, value.to_owned()));
        }
        Ok(Self(terms))
    }

    /// The one name that can match.
    pub(crate) fn by_name(name: &str) -> Self {
        Self(vec![("metadata.name".to_owned(), true, name.to_owned())])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0
            .iter()
            .all(|(field, equal, value)| (text_at(object, field) == *value) == *equal)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_operator_selects_as_documented() {
        let object =
            json!({"metadata": {"labels": {"app": "web", "weight": "5", "example.com/tier": "front"}}});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web", true),
            ("app=db", false),
            ("app!=db", true),
            ("absent!=db", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db,web)", false),
            ("absent notin (db)", true),
            ("example.com/tier", true),
            ("absent", false),
            ("!absent", true),
            ("!app", false),
            ("weight>4", true),
            ("weight>5", false),
            ("weight<6", true),
            ("app=web,weight in (5,6),!absent", true),
            ("app=web,absent", false),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&object), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for selector in ["=web", "a b=c", "app in web", "weight>x", "(", "app in (a"] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }
}
