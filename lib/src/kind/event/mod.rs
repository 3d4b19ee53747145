//! Descriptors that report events: eventfd, timerfd, signalfd, epoll.

pub(super) mod epoll;
pub(super) mod eventfd;
pub(super) mod signalfd;
pub(super) mod timerfd;
