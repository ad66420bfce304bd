//! One-time tokens: whoever has one may use what it stands for, once, for a time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// What the tokens that are out stand for.
pub struct Tokens<T> {
    lifetime: Duration,
    limit: usize,
    waiting: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T> Tokens<T> {
    /// At most `limit` tokens wait at a time, each for `lifetime`.
    pub fn new(lifetime: Duration, limit: usize) -> Self {
        Self {
            lifetime,
            limit,
            waiting: Mutex::default(),
        }
    }

    /// A token for `value`: 256 random bits in hexadecimal. None if too many wait already.
    pub fn issue(&self, value: T) -> Option<String> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock().expect("no panic holds it");
        if waiting.len() >= self.limit {
            waiting.retain(|_, (until, _)| *until > now);
        }
        if waiting.len() >= self.limit {
            return None;
        }
        let token = crate::model::random_id();
        waiting.insert(token.clone(), (now + self.lifetime, value));
        Some(token)
    }

    /// What `token` stands for, if `wanted` takes it; it stands for nothing from then on.
    pub fn redeem(&self, token: &str, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock().expect("no panic holds it");
        waiting.retain(|_, (until, _)| *until > now);
        if !wanted(&waiting.get(token)?.1) {
            return None;
        }
        waiting.remove(token).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once() {
        let tokens = Tokens::new(Duration::from_secs(60), 9);
        let token = tokens.issue(5).unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(tokens.redeem(&token, |_| false), None, "for something else");
        assert_eq!(tokens.redeem(&token, |_| true), Some(5));
        assert_eq!(tokens.redeem(&token, |_| true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_expire_and_make_room() {
        let tokens = Tokens::new(Duration::from_secs(60), 9);
        let first = tokens.issue(0).unwrap();
        for number in 1..9 {
            tokens.issue(number).unwrap();
        }
        assert_eq!(tokens.issue(0), None, "too many");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(tokens.redeem(&first, |_| true), None, "too late");
        assert!(tokens.issue(0).is_some());
    }
}
