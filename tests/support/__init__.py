"""What tests share: servers, fakes, scripted sources and embedders, the in-process shell, ordering histories."""
