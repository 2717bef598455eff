"""`make bench`: this service beside what a team would pick instead. `make load`: load for people to watch."""
