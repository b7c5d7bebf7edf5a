def declare(commands):
    pass
