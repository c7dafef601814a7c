"""The reviewer's desk: a page and a service where people look at masks, decide and correct, and have the model learn.

It holds no network: images and masks are read, decisions go into the feedback store, and what needs a model (scoring, a
new adaptation) is a process of its own.
"""
