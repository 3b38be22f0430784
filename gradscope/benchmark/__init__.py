"""What watching costs on this machine, in ratios: `gradscope bench`.

In: nets that cost in different ways, and what one would use instead of gradscope. Out: step times
over those of the bare net, measured side by side.
"""
