"""``labels audit RUN``: is the student of a run better than the labels that it learned from? A person looks at some
images, and says what is on them.
"""
