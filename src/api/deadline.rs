//! The caller's deadline (`grpc-timeout`), answered as gRPC says it: DeadlineExceeded. tonic by itself says Cancelled.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::Status;
use tower::{Layer, Service};

/// How much earlier than the caller the request ends here, so that the caller hears why.
const HEADROOM: Duration = Duration::from_millis(1);

/// Puts [`Deadline`] around a service.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// A service whose requests end at their caller's deadline.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for Deadline<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let limit = request
            .headers()
            .get("grpc-timeout")
            .and_then(|value| parse(value.to_str().ok()?));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(limit) = limit else {
                return answer.await;
            };
            match tokio::time::timeout(limit.saturating_sub(HEADROOM), answer).await {
                Ok(answer) => answer,
                Err(_) => Ok(Status::deadline_exceeded("not done by the caller's deadline").into_http()),
            }
        })
    }
}

/// A number of at most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        for (value, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("120000m", Some(Duration::from_secs(120))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("2H", Some(Duration::from_secs(7200))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("5é", None),
        ] {
            assert_eq!(parse(value), expected, "{value}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_beyond_its_deadline_is_answered_with_deadline_exceeded() {
        let slow = tower::service_fn(|_: http::Request<()>| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
        });
        let request = http::Request::builder().header("grpc-timeout", "1S").body(()).unwrap();
        let answer = DeadlineLayer.layer(slow).call(request).await.unwrap();
        assert_eq!(answer.headers().get("grpc-status").unwrap(), "4");
    }
}
