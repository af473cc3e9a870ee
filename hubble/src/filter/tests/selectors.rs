//! The syntax of label selectors.

use super::*;

fn labels() -> Vec<String> {
    texts(&[
        "k8s:app=web",
        "k8s:app.kubernetes.io/name=shop-web",
        "k8s:empty=",
        "k8s:io.kubernetes.pod.namespace=shop",
        "reserved:host",
    ])
}

#[test]
fn selectors_select_as_those_of_kubernetes_do() {
    for (selector, wanted) in [
        ("app=web", true),
        ("app==web", true),
        (" app = web ", true),
        ("app!=web", false),
        ("app!=api", true),
        ("missing!=x", true),
        ("app", true),
        ("missing", false),
        ("!missing", true),
        ("! missing", true),
        ("!app", false),
        ("app in (web)", true),
        ("app in (api,web)", true),
        ("app in ( api , web )", true),
        ("app in(api,web)", true),
        ("app in (api)", false),
        ("app notin (api)", true),
        ("app notin (api, web)", false),
        ("missing notin (x)", true),
        ("missing in (x)", false),
        ("empty=", true),
        ("empty", true),
        ("empty in ()", true),
        ("app=", false),
        ("app=web,empty", true),
        ("app=web,missing", false),
        ("app in (api, web), !missing, empty=", true),
        ("app.kubernetes.io/name=shop-web", true),
        // Where a label is from.
        ("k8s:app=web", true),
        ("any:app=web", true),
        ("container:app=web", false),
        ("k8s:io.kubernetes.pod.namespace=shop", true),
        ("k8s:app.kubernetes.io/name in (shop-web)", true),
        ("!k8s:app", false),
        ("!container:app", true),
        ("reserved:host", true),
        ("reserved:world", false),
        ("host", true),
    ] {
        let parsed = Selector::new(selector).unwrap();
        assert_eq!(parsed.selects(&labels()), wanted, "{selector}");
    }
}

#[test]
fn what_is_no_selector_is_refused_with_the_part_that_is_wrong() {
    let many = vec!["a"; 65].join(",");
    for (selector, said) in [
        ("", "'' is no key"),
        (" ", "'' is no key"),
        (",", "'' is no key"),
        ("app=web,", "'' is no key"),
        ("=web", "'' is no key"),
        ("!", "'' is no key"),
        ("a b", "'a b' is no key"),
        ("a>1", "'a>1' is no key"),
        ("app=we b", "'we b' is no value"),
        ("app=web=x", "'web=x' is no value"),
        ("app=!web", "'!web' is no value"),
        ("app in web", "'app in web' is no key"),
        ("app in (web", "not closed"),
        ("app in web)", "too many"),
        ("app in ((web))", "in another"),
        ("app of (web)", "expected 'KEY in' or 'KEY notin'"),
        ("app is in (web)", "expected 'KEY in' or 'KEY notin'"),
        ("(web)", "expected 'KEY in' or 'KEY notin'"),
        ("app in (w b)", "'w b' is no value"),
        ("k8s:=x", "'' is no key"),
        ("ä=x", "'ä' is no key"),
        (&many, "more than 64"),
    ] {
        let error = Selector::new(selector).expect_err(selector);
        assert!(error.contains(said), "{selector}: {error}");
    }
}
