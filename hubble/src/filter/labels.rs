//! Selectors of labels, in the syntax of Kubernetes: `app=web, tier in (a, b), !legacy`.

/// All requirements must be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    /// Where the label is from, as `k8s`; none: anywhere.
    source: Option<String>,
    key: String,
    values: Values,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Values {
    /// The label is there.
    Any,
    /// It is not.
    None,
    /// It has one of these.
    In(Vec<String>),
    /// It has none of these, or is not there.
    NotIn(Vec<String>),
}

/// Requirements of one selector.
const MOST: usize = 64;

// === impl Selector ===

impl Selector {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let parts = split(text)?;
        if parts.len() > MOST {
            return Err(format!("more than {MOST} requirements"));
        }
        let requirements: Vec<_> = parts
            .into_iter()
            .map(Requirement::new)
            .collect::<Result<_, _>>()?;
        if requirements.is_empty() {
            return Err("expected a selector, as 'app=web'".to_owned());
        }
        Ok(Self(requirements))
    }

    /// Whether labels, each as `source:key=value`, are selected.
    pub(super) fn selects(&self, labels: &[String]) -> bool {
        self.0.iter().all(|requirement| requirement.is_met(labels))
    }
}

/// The parts between commas that are not in parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (at, char) in text.char_indices() {
        match char {
            '(' if inside => return Err("a parenthesis in another".to_owned()),
            '(' => inside = true,
            ')' if !inside => return Err("a parenthesis too many".to_owned()),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("a parenthesis is not closed".to_owned());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

// === impl Requirement ===

impl Requirement {
    fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(key) = text.strip_prefix('!') {
            return Self::of(key, Values::None);
        }
        if let Some(list) = text.strip_suffix(')') {
            let (head, list) = list.split_once('(').ok_or("a parenthesis too many")?;
            let mut words = head.split_whitespace();
            let (key, operator) = (words.next().unwrap_or_default(), words.next());
            if words.next().is_some() {
                return Err(format!("'{head}': expected 'KEY in' or 'KEY notin'"));
            }
            let values = list.split(',').map(|value| checked_value(value.trim()));
            let values = values.collect::<Result<Vec<_>, _>>()?;
            return match operator {
                Some("in") => Self::of(key, Values::In(values)),
                Some("notin") => Self::of(key, Values::NotIn(values)),
                _ => Err(format!("'{head}': expected 'KEY in' or 'KEY notin'")),
            };
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Self::of(key, Values::NotIn(vec![checked_value(value.trim())?]));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Self::of(key, Values::In(vec![checked_value(value.trim())?]));
        }
        Self::of(text, Values::Any)
    }

    fn of(key: &str, values: Values) -> Result<Self, String> {
        let key = key.trim();
        // A source has no dot: `k8s:io.kubernetes.pod.namespace`.
        let (source, key) = match key.split_once(':') {
            Some(("any", key)) => (None, key),
            Some((source, key)) => (Some(source.to_owned()), key),
            None => (None, key),
        };
        let allowed = |char: char| char.is_ascii_alphanumeric() || "-._/".contains(char);
        if key.is_empty() || !key.chars().all(allowed) {
            return Err(format!("'{key}' is no key of a label"));
        }
        Ok(Self {
            source,
            key: key.to_owned(),
            values,
        })
    }

    fn is_met(&self, labels: &[String]) -> bool {
        let mut own = labels.iter().filter_map(|label| {
            let (source, rest) = label.split_once(':').unwrap_or(("", label));
            let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
            let is_it = key == self.key && self.source.as_deref().is_none_or(|wanted| wanted == source);
            is_it.then_some(value)
        });
        match &self.values {
            Values::Any => own.next().is_some(),
            Values::None => own.next().is_none(),
            Values::In(wanted) => own.any(|value| wanted.iter().any(|one| one == value)),
            Values::NotIn(unwanted) => !own.any(|value| unwanted.iter().any(|one| one == value)),
        }
    }
}

fn checked_value(text: &str) -> Result<String, String> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || "-._:/".contains(char);
    if text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("'{text}' is no value of a label"))
    }
}
