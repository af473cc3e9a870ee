//! How many connections an address may have at once: strangers must not take the places of agents.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Connections by the address that they come from.
#[derive(Debug, Clone, Default)]
pub struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    sources: Sources,
    address: IpAddr,
}

impl Sources {
    /// A place for a connection from an address, unless it has `most` already.
    #[must_use]
    pub fn enter(&self, address: IpAddr, most: usize) -> Option<Place> {
        let address = address.to_canonical();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place {
            sources: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let sources = Sources::default();
        let (one, mapped): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "::ffff:10.0.0.1".parse().unwrap());
        let first = sources.enter(one, 2);
        let second = sources.enter(mapped, 2);
        assert!(first.is_some() && second.is_some());
        assert!(sources.enter(one, 2).is_none(), "however the address is written");
        assert!(sources.enter("10.0.0.2".parse().unwrap(), 2).is_some());
        drop(first);
        assert!(sources.enter(one, 2).is_some());
        drop(second);
        assert!(
            sources.0.lock().unwrap().is_empty(),
            "nothing is kept of who is gone"
        );
    }
}
