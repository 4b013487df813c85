//! Step 4: meeting the others who want the same, in this process and elsewhere.

use super::{Course, Flight, Grant, MOST_FAILURES, Visit};
use crate::{
    budget::Budget,
    flights::{Follow, Joined, Release, Waited},
    lease::Lease,
    share::{Fetched, Following},
    store::{Claim, Copied, Found, Seen},
};
use larder_semantics::{Entry, EntryKey, Filling, Forward, Hit, Reason, Refusal, Timestamp};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// What comes of meeting the others who want the same.
pub(super) enum Joining {
    /// This request fetches, for this reason if it is a new one.
    Leads(Box<Grant>, Option<Reason>),
    /// It goes to the origin for itself only, for this reason if it is a new one.
    Alone(Option<Reason>),
    /// There is something new to look up.
    Again,
    /// This is in the store after all.
    Found(Arc<Entry>, Copied),
    /// Whoever fetched it has failed; there may be somebody else who leads.
    Failed,
    /// Somebody is fetching it, and what is held may answer meanwhile.
    Late,
    /// Another request has fetched it, or is fetching it: then there is more to come.
    Brought(Filling, Option<Following>, Reason),
}

impl Joining {
    /// Without the right to store.
    fn leads(lead: Flight, key: &EntryKey, unstored: Refusal, reason: Option<Reason>) -> Self {
        let grant = Grant { key: key.clone(), lead: Some(lead), lease: None, unstored: Some(unstored) };
        Self::Leads(Box::new(grant), reason)
    }

    fn brought(fetched: Fetched, reason: Reason) -> Self {
        match fetched {
            Fetched::Whole(filling) => Self::Brought(filling, None, reason),
            Fetched::Found(entry, copied) => Self::Found(entry, copied),
            Fetched::Coming(stream) => match Following::attach(&stream) {
                Some((filling, following)) => Self::Brought(filling, Some(following), Reason::Collapsed),
                // It was whole, or broke off, before this request laid hold of it: the flight, or the store, knows by now.
                None => Self::Again,
            },
        }
    }

    /// What was brought to those who follow. What is whole by now may be nowhere else.
    fn followed(fetched: Fetched, follow: &Follow<Fetched>) -> Self {
        match Self::brought(fetched, Reason::Collapsed) {
            Self::Again => follow.brought().map_or(Self::Again, |whole| Self::brought(whole, Reason::Collapsed)),
            joining => joining,
        }
    }
}

impl Visit<'_> {
    /// Step 4 for a response that may answer meanwhile: whoever leads has it revalidated, and nobody waits.
    pub(super) fn refresh(&self, hit: Hit, forward: Forward, key: EntryKey, copy: Reason, now: Timestamp) -> Course {
        if hit.staleness().is_none() && !self.front.cache.asks_early(&key) {
            return Course::Answer(hit, key, copy, now);
        }
        let grant = |key: &EntryKey, lead| Grant { key: key.clone(), lead, lease: None, unstored: None };
        if !forward.may_collapse() {
            return Course::refresh(hit, forward, grant(&key, None), copy, now);
        }
        match self.front.cache.shared.flights.join(&key.base(), &key.variant()) {
            Joined::Lead(lead) => Course::refresh(hit, forward, grant(&key, Some(lead)), copy, now),
            Joined::Brought(_) | Joined::Follow(_) if hit.staleness().is_none() => Course::Answer(hit, key, copy, now),
            Joined::Brought(_) | Joined::Follow(_) => Course::Answer(hit.updating(), key, copy, now),
        }
    }

    /// Step 4: joins those of this process who want the same, and asks the store for the right to fill what was `seen` in it,
    /// if it can be asked.
    pub(super) async fn join(
        &self,
        forward: &Forward,
        key: &EntryKey,
        seen: Option<Seen>,
        budget: &mut Budget,
        patience: &mut Duration,
    ) -> Joining {
        let flights = &self.front.cache.shared.flights;
        self.front.cache.detach_unsure(&key.base());
        let mut joined = forward.may_collapse().then(|| flights.join(&key.base(), &key.variant()));
        let mut in_vain = 0;
        loop {
            match joined {
                None => match seen {
                    Some(seen) => return self.claim(None, key, seen, budget).await,
                    None => return Joining::Alone(None),
                },
                Some(Joined::Brought(fetched)) => return Joining::brought(fetched, Reason::Near),
                Some(Joined::Lead(lead)) => match seen {
                    Some(seen) => return self.claim_in_turn(lead, forward, key, seen, budget, patience).await,
                    None => return Joining::leads(lead, key, Refusal::StoreRefused, None),
                },
                // What is stale may answer at once, as the leader's client gets it too if the origin takes long.
                Some(Joined::Follow(_)) if self.front.rules.policy.soft_timeout.is_some() && forward.holds() => {
                    return Joining::Late;
                }
                Some(Joined::Follow(mut follow)) => match follow.brings(patience).await {
                    Ok(Waited::Brought(fetched)) => return Joining::followed(fetched, &follow),
                    Ok(Waited::Released(Release::Compete)) => return Joining::Failed,
                    Ok(Waited::Released(Release::GoAlone)) => return Joining::Alone(None),
                    // The leader hangs. One of those who have waited long enough tries in its place.
                    Err(begun) => match flights.take_over(&key.base(), &key.variant(), &follow, begun) {
                        Joined::Lead(lead) => {
                            return Joining::leads(lead, key, Refusal::TicketLost, Some(Reason::LockTimeout));
                        }
                        Joined::Follow(_) if in_vain == MOST_FAILURES => {
                            return Joining::Alone(Some(Reason::LockTimeout));
                        }
                        other => {
                            in_vain += 1;
                            *patience = self.front.cache.shared.settings.lock_wait;
                            joined = Some(other);
                        }
                    },
                },
            }
        }
    }

    /// Asks the store for the right to fill; whoever leads others then fetches without it too.
    async fn claim(&self, lead: Option<Flight>, key: &EntryKey, seen: Seen, budget: &mut Budget) -> Joining {
        let (lease, unstored) = match budget.spend(self.front.cache.store().claim(key, seen)).await {
            Ok(Claim::Granted(ticket)) => (Some(Lease::hold(&self.front.cache, ticket)), None),
            Ok(Claim::Found(entry, copied)) => {
                if let Some(lead) = lead {
                    // Those who follow need not look for it one by one.
                    lead.land(Fetched::Found(entry.clone(), copied));
                }
                return Joining::Found(entry, copied);
            }
            Ok(Claim::Moved) => return Joining::Again,
            Ok(Claim::Uncacheable) => {
                self.front.cache.know_uncacheable(key);
                if let Some(lead) = lead {
                    lead.release(Release::GoAlone);
                }
                return Joining::Alone(Some(Reason::KnownUncacheable));
            }
            Ok(Claim::Held) => (None, Some(Refusal::TicketLost)),
            Ok(Claim::Marked) => (None, Some(Refusal::BeingWritten)),
            Err(_) => (None, Some(Refusal::StoreRefused)),
        };
        if lead.is_none() && lease.is_none() {
            return Joining::Alone(None);
        }
        Joining::Leads(Box::new(Grant { key: key.clone(), lead, lease, unstored }), None)
    }

    /// The same, waiting for another process that holds the right, and has what it fetches brought to all who follow here.
    async fn claim_in_turn(
        &self,
        lead: Flight,
        forward: &Forward,
        key: &EntryKey,
        seen: Seen,
        budget: &mut Budget,
        patience: &mut Duration,
    ) -> Joining {
        let (store, settings) = (self.front.cache.store(), self.front.cache.shared.settings);
        let mut lead = lead;
        let mut pause = FIRST_PAUSE;
        // A little less than those who follow, who else would try in the place of a leader that is about to.
        *patience = patience.saturating_sub(*patience / 20);
        loop {
            let (flight, claimed) = match self.claim(Some(lead), key, seen, budget).await {
                Joining::Leads(mut grant, reason) if grant.unstored == Some(Refusal::TicketLost) => {
                    match grant.lead.take() {
                        Some(lead) => (lead, grant),
                        None => return Joining::Leads(grant, reason),
                    }
                }
                other => return other,
            };
            lead = flight;
            if patience.is_zero() {
                // Whoever waits here waits for this request from now on, unless it was late itself.
                if let Err(mut follow) = lead.begin_anew() {
                    *patience = settings.lock_wait;
                    let Ok(Waited::Brought(fetched)) = follow.brings(patience).await else { return Joining::Again };
                    // For those, too, who still follow this one.
                    if let Some(brought) = follow.brought() {
                        lead.land(brought);
                    }
                    return Joining::followed(fetched, &follow);
                }
                let grant = Box::new(Grant { lead: Some(lead), ..*claimed });
                return Joining::Leads(grant, Some(Reason::LockTimeout));
            }
            let began = Instant::now();
            store.turn(key, pause.mul_f64(0.75 + fastrand::f64() / 2.0).min(*patience)).await;
            *patience = patience.saturating_sub(began.elapsed());
            pause = (pause * 2).min(LONGEST_PAUSE);
            // What was waited for the other process is not the store's to answer for.
            *budget = Budget::new(settings.store_budget, settings.read_deadline);
            let Ok(found) = budget.spend(store.get(key)).await else { continue };
            match found {
                Found::Entry(entry, _) if Seen::Entry(entry.id) != seen => {
                    let (key, rule) = (key.clone(), forward.rule());
                    let filling = Filling { key, response: entry, rule, stored_for: Duration::ZERO };
                    lead.land(Fetched::Whole(filling.clone()));
                    return Joining::Brought(filling, None, Reason::Collapsed);
                }
                // What this request has read was invalidated meanwhile: the origin is not to confirm that.
                Found::Absent | Found::Invalidated(_) if matches!(seen, Seen::Entry(_)) => return Joining::Again,
                _ => {}
            }
        }
    }
}

/// How long a request that waits for another process does so before it looks again, at first and at most: mostly it is told
/// before that.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

impl Follow<Fetched> {
    /// Waits for what the leader brings, and as long again each time that it begins anew; in vain, for how often it had begun.
    async fn brings(&mut self, patience: &mut Duration) -> Result<Waited<Fetched>, u32> {
        let whole = *patience;
        loop {
            let (begun, began) = (self.begun(), Instant::now());
            if let Ok(waited) = timeout(*patience, &mut *self).await {
                *patience = patience.saturating_sub(began.elapsed());
                return Ok(waited);
            }
            *patience = Duration::ZERO;
            if self.begun() == begun {
                return Err(begun);
            }
            *patience = whole;
        }
    }
}
