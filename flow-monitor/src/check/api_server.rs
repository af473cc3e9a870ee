//! The API server's version, and what the user may do there.

use k8s_openapi::apimachinery::pkg::version::Info;

use super::finding::{Finding, named};

/// The oldest version of Kubernetes that is supported: that of native sidecars and CEL in definitions by default.
const OLDEST: (u32, u32) = (1, 28);

/// Something that a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) verb: &'static str,
    pub(crate) group: &'static str,
    /// With its subresource.
    pub(crate) resource: &'static str,
    /// Whether it is for this command; else it is for installing.
    pub(crate) to_look: bool,
}

const fn install(group: &'static str, resource: &'static str) -> Right {
    Right {
        verb: "create",
        group,
        resource,
        to_look: false,
    }
}

const fn look(verb: &'static str, resource: &'static str) -> Right {
    Right {
        verb,
        group: "",
        resource,
        to_look: true,
    }
}

/// What is asked for.
pub(crate) const RIGHTS: &[Right] = &[
    install("", "namespaces"),
    install("", "serviceaccounts"),
    install("", "services"),
    install("", "configmaps"),
    install("", "secrets"),
    install("apps", "deployments"),
    install("apps", "daemonsets"),
    install("rbac.authorization.k8s.io", "clusterroles"),
    install("rbac.authorization.k8s.io", "clusterrolebindings"),
    install("apiextensions.k8s.io", "customresourcedefinitions"),
    look("list", "pods"),
    look("get", "pods/portforward"),
    look("create", "pods/portforward"),
];

/// The version.
pub(crate) fn version(info: &Info) -> Finding {
    const ABOUT: &str = "API server";
    // Clouds write `28+`.
    let number = |text: &str| -> Option<u32> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..digits].parse().ok()
    };
    let found = number(&info.major).zip(number(&info.minor));
    let (major, minor) = OLDEST;
    let version = &info.git_version;
    match found {
        Some(found) if found >= OLDEST => Finding::ok(ABOUT, version.clone()),
        Some(_) => Finding::fail(
            ABOUT,
            format!("{version} is older than {major}.{minor}"),
            format!("upgrade Kubernetes to {major}.{minor} or newer"),
        ),
        None => Finding::warn(
            ABOUT,
            format!("{version} is no version that is understood"),
            format!("Weir needs {major}.{minor} or newer"),
        ),
    }
}

/// What the user may and may not do.
pub(crate) fn rights(answers: &[(Right, bool)], installed: bool) -> Vec<Finding> {
    const ABOUT: &str = "Your rights";
    let lacking = |to_look: bool| -> Vec<String> {
        let lacking = answers
            .iter()
            .filter(|(right, allowed)| right.to_look == to_look && !allowed);
        lacking
            .map(|(right, _)| match right.group {
                "" => format!("{} {}", right.verb, right.resource),
                group => format!("{} {}.{group}", right.verb, right.resource),
            })
            .collect()
    };
    let mut findings = Vec::new();
    let to_install = lacking(false);
    let what = format!("you may not: {}", named(&to_install));
    let todo = "ask an administrator of the cluster to install or upgrade Weir";
    match (to_install.is_empty(), installed) {
        (true, _) => findings.push(Finding::ok(ABOUT, "you may install and upgrade Weir")),
        (false, false) => findings.push(Finding::fail(ABOUT, what, todo)),
        (false, true) => findings.push(Finding::warn(ABOUT, what, todo)),
    }
    let to_look = lacking(true);
    if !to_look.is_empty() {
        findings.push(Finding::warn(
            ABOUT,
            format!("you may not: {}", named(&to_look)),
            "without it this command cannot ask agents",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    #[test]
    fn versions_before_the_oldest_are_refused() {
        for (major, minor, level) in [
            ("1", "34", Level::Ok),
            ("1", "28+", Level::Ok),
            ("1", "27", Level::Fail),
            ("2", "0", Level::Ok),
            ("x", "", Level::Warn),
        ] {
            let info = Info {
                major: major.to_owned(),
                minor: minor.to_owned(),
                ..Info::default()
            };
            assert_eq!(version(&info).level, level, "{major}.{minor}");
        }
    }

    #[test]
    fn who_may_not_install_is_told_what_is_missing() {
        let answers = |denied: &str| -> Vec<(Right, bool)> {
            RIGHTS
                .iter()
                .map(|right| (*right, right.resource != denied))
                .collect()
        };
        assert_found(&rights(&answers(""), false), &[(Level::Ok, "you may install")]);
        let denied = answers("clusterroles");
        let words = "create clusterroles.rbac.authorization.k8s.io";
        assert_found(&rights(&denied, false), &[(Level::Fail, words)]);
        assert_found(&rights(&denied, true), &[(Level::Warn, words)]);
        let denied = answers("pods/portforward");
        let words = "get pods/portforward, create pods/portforward";
        assert_found(&rights(&denied, true), &[(Level::Ok, ""), (Level::Warn, words)]);
    }
}
