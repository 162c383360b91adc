"""The networks: (x, time, cond) -> output of x's size; what it means is the prediction's matter. Import torch alone.

`conditioning` has the Protocol of what each offers; weights bear diffusers' names where diffusers has the network.
"""
