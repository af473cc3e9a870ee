//! `weir top`, in a terminal.

use std::{path::PathBuf, process::Command};

use weir_e2e::{Mesh, connect, serve};
use weir_lab::{PATIENCE, poll, program};

/// A terminal of tmux's, with a shell in it.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    fn new(mesh: &Mesh, width: u16, height: u16) -> Self {
        let terminal = Self {
            socket: mesh.lab.folder().join("tmux"),
        };
        let (width, height) = (width.to_string(), height.to_string());
        let shell = "env -i PATH=\"$PATH\" TERM=screen-256color LANG=C.UTF-8 PS1='ready$ ' sh";
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", &height, shell]);
        terminal.wait("ready$");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command
            .arg("-S")
            .arg(&self.socket)
            .args(["-u", "-f", "/dev/null"]);
        let output = command
            .args(arguments)
            .output()
            .expect("tmux, of Debian's package");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn press(&self, keys: &str) {
        self.tmux(&["send-keys", keys]);
    }

    /// Waits until the screen is as wanted; gives it.
    #[track_caller]
    fn wait_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let found = poll(what, PATIENCE, || {
            screen = self.screen();
            Ok(wanted(&screen).then_some(()))
        });
        if let Err(error) = found {
            panic!("{error:#}\n{screen}");
        }
        screen
    }

    #[track_caller]
    fn wait(&self, text: &str) -> String {
        self.wait_until(text, |screen| screen.contains(text))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It ends with its last session, if that has not ended by itself.
        let mut command = Command::new("tmux");
        let _ = command.arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

#[test]
fn pairs_are_shown_sorted_searched_and_the_terminal_is_given_back() {
    let mesh = Mesh::new("top");
    let _servers = [&mesh.b, &mesh.c].map(|pod| serve(pod, ["echo-server", "--port", "7000"]).0);
    for _ in 0..3 {
        connect(&mesh.a, &mesh.c, 7000);
    }
    connect(&mesh.a, &mesh.b, 7000);
    // Nobody listens there.
    connect(&mesh.a, &mesh.d, 7001);

    let terminal = Terminal::new(&mesh, 120, 24);
    let weir = program("weir").unwrap();
    let socket = mesh.lab.folder().join("node1.sock");
    let top = format!(
        "{} top --sort opened --socket {}",
        weir.display(),
        socket.display()
    );
    terminal.tmux(&["send-keys", &top, "Enter"]);
    let screen = terminal.wait("shop/d");
    let line = |screen: &str, name: &str| screen.lines().position(|line| line.contains(name)).unwrap();
    assert!(line(&screen, "shop/c") < line(&screen, "shop/b"), "{screen}");
    let cells: Vec<&str> = screen
        .lines()
        .nth(line(&screen, "shop/c"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(cells[..4], ["shop/a", "shop/c", "7000", "mTLS"], "{screen}");
    assert_eq!(cells[6], "3", "opened: {screen}");
    let cells: Vec<&str> = screen
        .lines()
        .nth(line(&screen, "shop/d"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(cells[7], "1", "failed: {screen}");

    terminal.press("r");
    terminal.wait_until("the other order", |screen| {
        line(screen, "shop/b") < line(screen, "shop/c")
    });
    // What happens while it runs.
    for _ in 0..4 {
        connect(&mesh.a, &mesh.b, 7000);
    }
    terminal.wait_until("the new connections", |screen| {
        line(screen, "shop/c") < line(screen, "shop/b")
    });

    terminal.tmux(&["send-keys", "-l", "/shop/D"]);
    terminal.wait_until("what is searched", |screen| {
        screen.contains("shop/d") && !screen.contains("shop/c")
    });
    terminal.press("Enter");
    terminal.press("Enter");
    let details = terminal.wait("last reason");
    assert!(details.contains("connection_refused"), "{details}");
    terminal.press("Escape");
    terminal.press("Escape");
    terminal.wait("shop/c");
    terminal.press("?");
    terminal.wait("these keys");
    terminal.press("Escape");

    // As small as nobody uses it, and wide again.
    terminal.tmux(&["resize-window", "-x", "12", "-y", "3"]);
    terminal.wait_until("a small screen", |screen| {
        screen.lines().all(|line| line.len() <= 24)
    });
    terminal.tmux(&["resize-window", "-x", "150", "-y", "40"]);
    terminal.wait("shop/c");

    terminal.press("q");
    terminal.wait_until("the shell", |screen| {
        screen.contains("ready$") && !screen.contains("weir top  ")
    });
    terminal.tmux(&["send-keys", "echo code $?", "Enter"]);
    terminal.wait("code 0");
}

#[test]
fn a_signal_ends_it_and_gives_the_terminal_back_and_without_one_it_says_so() {
    let mesh = Mesh::new("topend");
    let socket = mesh.lab.folder().join("node1.sock");
    let terminal = Terminal::new(&mesh, 100, 20);
    let weir = program("weir").unwrap();
    let top = format!("{} top --socket {}", weir.display(), socket.display());
    terminal.tmux(&["send-keys", &top, "Enter"]);
    terminal.wait("No connection in the last minute");
    terminal.press("C-c");
    terminal.wait_until("the shell", |screen| !screen.contains("weir top  "));
    terminal.tmux(&["send-keys", "stty -a | grep -c -- -icanon; echo a''gain", "Enter"]);
    let screen = terminal.wait("again");
    assert!(screen.lines().any(|line| line.trim() == "0"), "{screen}");

    let output = Command::new(weir)
        .args(["top", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("top needs a terminal"));
}
