//! `weir top`: who talks to whom now, in a terminal.

mod state;
mod view;

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use weir_hubble::{convert::timestamp, observer::Viewer, relay::Relay};
use weir_proto::observer::{GetFlowsRequest, GetFlowsResponse};

use crate::{
    cluster::Agents,
    flows::{Filters, ServerOptions},
    merge::Item,
    target::Usage,
    ways::Ways,
};
use state::{Sort, State};

/// How often the screen is drawn where nothing is pressed.
const DRAW: Duration = Duration::from_secs(1);
/// Records that are looked back at: what has just been is shown at once.
const BEFORE: Duration = Duration::from_secs(60);
/// Records that are taken in before the screen has its turn.
const TOGETHER: usize = 4096;

/// Shows who talks to whom, live: connections, bytes, failures and round-trip time by pairs of workloads.
///
/// Keys: q quits, s and S choose the column to sort by, r turns the order round, / searches, Escape ends the search, arrows,
/// page keys, Home and End move, p pauses, a shows silent pairs too, Enter the details of a pair, ? the keys.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir top\n  \
    weir top --namespace shop --sort failures\n  \
    weir top --node worker-1\n  \
    weir top --server 127.0.0.1:4245")]
pub(crate) struct Top {
    #[command(flatten)]
    filters: Filters,
    /// The column to begin with.
    #[arg(long, value_enum, default_value = "rate")]
    sort: Sort,
    #[command(flatten)]
    server: ServerOptions,
}

impl Top {
    /// Whether agents are to be found: no server is named.
    pub(crate) fn asks_agents(&self) -> bool {
        self.server.server.is_none()
    }

    /// Shows them until it is left.
    pub(crate) async fn run(self, agents: Option<Agents>) -> anyhow::Result<()> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Usage(
                "top needs a terminal; 'weir flows --follow' writes what happens to a file or another program"
                    .to_owned(),
            )
            .into());
        }
        let since = Timestamp::now().checked_sub(BEFORE)?;
        let request = GetFlowsRequest {
            follow: true,
            since: Some(timestamp(since)),
            whitelist: self.filters.allow,
            blacklist: self.filters.deny,
            ..GetFlowsRequest::default()
        };
        match agents {
            Some(mut agents) => {
                agents.complain();
                let nodes = agents.found.len();
                let ways = Ways::of_agents(agents.found);
                let watched = ways.nodes();
                let answer = Relay::new(ways, watched).flows(request, Viewer::default());
                let answer = answer.map_err(|error| Usage(error.to_string()))?;
                show(answer, State::new(self.sort, nodes)).await
            }
            None => show(self.server.flows(request).await?, State::new(self.sort, 0)).await,
        }
    }
}

/// Draws until it is left, and gives the terminal back as it was, whatever happens.
async fn show(
    flows: impl Stream<Item = Result<GetFlowsResponse, Status>> + Unpin,
    state: State,
) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let result = drawn(&mut terminal, flows, state).await;
    ratatui::restore();
    result
}

async fn drawn(
    terminal: &mut ratatui::DefaultTerminal,
    mut flows: impl Stream<Item = Result<GetFlowsResponse, Status>> + Unpin,
    mut state: State,
) -> anyhow::Result<()> {
    let mut keys = keys();
    let mut stop = crate::relay::stop_signals()?;
    let mut ticks = interval(DRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| view::draw(frame, &mut state, Timestamp::now()))?;
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.stopped() => return Ok(()),
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if pressed(&mut state, key) {
                        return Ok(());
                    }
                }
                // The size changed: drawn anew.
                Some(_) => {}
                None => return Ok(()),
            },
            response = flows.next(), if !state.ended => {
                take(&mut state, response)?;
                // With what comes along with it, but the screen has its turn.
                let until = Instant::now() + DRAW / 4;
                for _ in 0..TOGETHER {
                    let left = until.saturating_duration_since(Instant::now());
                    let Ok(response) = timeout(left.min(Duration::from_millis(20)), flows.next()).await else {
                        break;
                    };
                    take(&mut state, response)?;
                    if state.ended {
                        break;
                    }
                }
            }
        }
    }
}

fn take(state: &mut State, response: Option<Result<GetFlowsResponse, Status>>) -> anyhow::Result<()> {
    let Some(response) = response else {
        state.ended = true;
        return Ok(());
    };
    let response = response.map_err(|status| crate::agent::refusal(&status))?;
    match Item::of(response, "") {
        Some(Item::Flow(seen)) => state.take(&seen.flow),
        Some(Item::Lost(_, count)) => state.pairs.lose(count),
        Some(Item::Status(text)) => state.notice = Some(text),
        None => {}
    }
    Ok(())
}

/// What is pressed. Ends when nobody listens.
fn keys() -> mpsc::Receiver<Event> {
    let (to, keys) = mpsc::channel(16);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if to.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// Does what a key says; true if that is to leave.
fn pressed(state: &mut State, key: KeyEvent) -> bool {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return key.code == KeyCode::Char('c');
    }
    if state.is_searching {
        match key.code {
            KeyCode::Esc => {
                state.search.clear();
                state.is_searching = false;
            }
            KeyCode::Enter => state.is_searching = false,
            KeyCode::Backspace => {
                state.search.pop();
            }
            KeyCode::Char(char) if state.search.len() < 256 => state.search.push(char),
            _ => {}
        }
        return false;
    }
    match key.code {
        KeyCode::Char('q') => return true,
        KeyCode::Esc if state.is_asking_for_keys || state.has_details => {
            state.is_asking_for_keys = false;
            state.has_details = false;
        }
        KeyCode::Esc => state.search.clear(),
        KeyCode::Char('s') => state.sort = state.sort.next(),
        KeyCode::Char('S') => state.sort = state.sort.before(),
        KeyCode::Char('r') => state.is_reversed = !state.is_reversed,
        KeyCode::Char('/') => {
            state.search.clear();
            state.is_searching = true;
        }
        KeyCode::Char('p') => state.pause(),
        KeyCode::Char('a') => state.shows_silent = !state.shows_silent,
        KeyCode::Char('?' | 'h') => state.is_asking_for_keys = !state.is_asking_for_keys,
        KeyCode::Enter => state.has_details = !state.has_details,
        KeyCode::Up | KeyCode::Char('k') => state.move_by(-1),
        KeyCode::Down | KeyCode::Char('j') => state.move_by(1),
        KeyCode::PageUp => state.move_by(-state.page()),
        KeyCode::PageDown => state.move_by(state.page()),
        KeyCode::Home | KeyCode::Char('g') => state.move_by(isize::MIN),
        KeyCode::End | KeyCode::Char('G') => state.move_by(isize::MAX),
        _ => {}
    }
    false
}
