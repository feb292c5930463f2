//! What a service author hands over.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt::Display;
use core::future::Future;
use core::pin::Pin;

use skein_wire::http::{Request, Response};

type Answer = Pin<Box<dyn Future<Output = Response>>>;

/// A function that answers requests: `async fn(Request) -> impl Into<Response>`, or the same
/// without `async`. `Kind` only tells the two apart.
pub trait Handler<Kind>: 'static {
    /// Begins to answer.
    fn call(&self, request: Request) -> Answer;
}

/// Marks functions that are `async`.
#[derive(Debug)]
pub struct Asynchronous;

/// Marks functions that are not.
#[derive(Debug)]
pub struct Synchronous;

impl<F, R> Handler<(Asynchronous, R)> for F
where
    F: Fn(Request) -> R + 'static,
    R: Future + 'static,
    R::Output: Into<Response>,
{
    fn call(&self, request: Request) -> Answer {
        let answer = self(request);
        Box::pin(async move { answer.await.into() })
    }
}

impl<F, R> Handler<(Synchronous, R)> for F
where
    F: Fn(Request) -> R + 'static,
    R: Into<Response> + 'static,
{
    fn call(&self, request: Request) -> Answer {
        Box::pin(core::future::ready(self(request).into()))
    }
}

/// What an `init` function may return.
pub trait Started {
    /// The reason why the machine cannot start, if there is one.
    ///
    /// # Errors
    /// That reason.
    fn into_result(self) -> Result<(), String>;
}

impl Started for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: Display> Started for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

/// A service: its function, and what runs before it.
pub struct Service {
    handler: Box<dyn Fn(Request) -> Answer>,
    init: Option<Box<dyn FnOnce() -> Result<(), String>>>,
}

impl Service {
    /// A service of `handler`; `init` runs once before the machine listens.
    pub fn new<Kind, S: Started>(
        handler: impl Handler<Kind>,
        init: impl FnOnce() -> S + 'static,
    ) -> Self {
        Self {
            handler: Box::new(move |request| handler.call(request)),
            init: Some(Box::new(move || init().into_result())),
        }
    }

    /// Runs `init`, the first time.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        self.init.take().map_or(Ok(()), |init| init())
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request) -> Response {
        (self.handler)(request).await
    }
}

impl core::fmt::Debug for Service {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Service")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::task::{Context, Poll, Waker};

    fn ask(service: &Service) -> Response {
        let request = Request::new("GET", "/", alloc::vec![]).unwrap();
        let mut answer = core::pin::pin!(service.answer(request));
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => response,
            Poll::Pending => panic!("the handler does not wait"),
        }
    }

    #[test]
    fn both_kinds_of_functions_serve() {
        async fn slow(_: Request) -> Result<&'static str, Response> {
            Ok("slow")
        }
        fn quick(_: Request) -> String {
            "quick".into()
        }
        let mut service = Service::new(slow, || ());
        assert_eq!(service.start(), Ok(()));
        assert_eq!(ask(&service).body(), b"slow");
        let mut service = Service::new(quick, || Err::<(), _>("no data"));
        assert_eq!(ask(&service).body(), b"quick");
        assert_eq!(service.start(), Err("no data".into()));
        assert_eq!(service.start(), Ok(()), "init runs once");
    }
}
