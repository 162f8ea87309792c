//! The kinds of resource: one file a kind, and the registry from URL to backend.
