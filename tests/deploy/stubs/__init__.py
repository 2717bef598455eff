"""kubectl, docker, trivy and the image loaders, played by the test's own process."""
