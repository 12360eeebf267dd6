"""Export: the steps from a super-adapter to a directory that OpenVINO clients run, its verification and its records."""
