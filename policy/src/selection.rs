//! Finding what selects a workload, by its labels, among very many selectors.

use std::collections::{BTreeMap, HashMap};

use crate::Selector;

/// Selectors of one namespace, each under the rarest of its labels.
#[derive(Debug, Default)]
pub(crate) struct Selectors {
    /// By label and value.
    labelled: HashMap<String, HashMap<String, Vec<(u32, Selector)>>>,
    /// Those that select every workload.
    all: Vec<u32>,
}

// === impl Selectors ===

impl Selectors {
    /// Of numbered selectors.
    pub(crate) fn new<'a>(selectors: impl Iterator<Item = (u32, &'a Selector)> + Clone) -> Self {
        let mut frequencies: HashMap<(&str, &str), u32> = HashMap::new();
        for (key, value) in selectors.clone().flat_map(|(_, selector)| &selector.match_labels) {
            *frequencies.entry((key, value)).or_default() += 1;
        }
        let mut result = Self::default();
        for (number, selector) in selectors {
            let labels = selector.match_labels.iter();
            let rarest = labels.min_by_key(|(key, value)| frequencies[&(key.as_str(), value.as_str())]);
            match rarest {
                Some((key, value)) => {
                    let values = result.labelled.entry(key.clone()).or_default();
                    let selectors = values.entry(value.clone()).or_default();
                    selectors.push((number, selector.clone()));
                }
                None => result.all.push(number),
            }
        }
        result
    }

    /// Adds the numbers of those that select a workload with these labels, in no order.
    pub(crate) fn find(&self, labels: &BTreeMap<String, String>, found: &mut Vec<u32>) {
        found.extend(&self.all);
        if self.labelled.is_empty() {
            return;
        }
        for (key, value) in labels {
            let Some(selectors) = self.labelled.get(key).and_then(|values| values.get(value)) else {
                continue;
            };
            let selecting = selectors.iter().filter(|(_, selector)| selector.selects(labels));
            found.extend(selecting.map(|(number, _)| number));
        }
    }
}
