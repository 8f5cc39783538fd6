-- The documentation of what a policy finds around it, which is made in C (src/sandbox/env*.c): comments as
-- symphony.repl.docs reads them, and nothing else.

--- # policy: a text of Lua that has a word in what the cluster decides
--- It returns one table. Its hooks are called with a plain table each, and return nothing (no opinion) or a decision.
--- Policies run in the order of `order` (0 to 100, by default 50), then of their names; the first that refuses
--- ends it, and what one amends the next ones see. `match` keeps a hook from being called for nothing. `selftest` has
--- to pass before the policy is taken: `expect` is what the decision has to have in it, {} no opinion.
---   return {
---     summary = "At most two keys for a team",
---     match = { ["admit.change"] = { kinds = { "kv" }, keys = { "team/*" } } },
---     hooks = {
---       ["admit.change"] = function(change)
---         if change.action == "put" and not change.old and count("/kv/team/") >= 2 then
---           return refuse("the team has its two keys")
---         end
---       end,
---     },
---     selftest = {
---       { name = "the third is refused", hook = "admit.change",
---         input = { kind = "kv", key = "team/c", action = "put", new = "3" },
---         state = { ["/kv/team/a"] = "1", ["/kv/team/b"] = "2" }, expect = { refuse = true } },
---       { name = "the first is not", hook = "admit.change",
---         input = { kind = "kv", key = "team/a", action = "put", new = "1" }, expect = {} },
---     },
---   }

--- # hooks: what is asked of policies, and with what
--- admit.join {role, name, address, addresses, services, version, labels, token, who}: may a node join? Fails closed.
--- admit.change {kind, key, action, old, new, old_revision, who}: may this be changed? kind is "kv", "node" or that of
--- a resource; action "put" or "delete". Fails closed, and is bound to what it has read.
--- place.<kind> {resource, candidates, want, current}: which nodes, best first? When it fails the default counts.
--- node.down, node.up {node, reason, since}; leader.change {leader, term}; every.<duration>, such as every.30s, {now}:
--- reactions, on the leader. They return a list of commands, which are checked like any other change.

--- allow()
--- Nothing against it; the policies that follow are asked all the same.
---   allow().allow --> true

--- refuse(reason)
--- Not so. The reason is told to who asked.
---   refuse("full").refuse --> "full"

--- amend(fields)
--- So, but with these fields of the input changed.
---   amend({ new = "small" }).amend.new --> "small"

--- approve()
--- admit.join only: the node may join without a token.
---   approve().approve --> true

--- choose(node_ids)
--- place.<kind> only: these nodes, best first.
---   #choose({ "a", "b" }).choose --> 2

--- get(key) -> value
--- What the state has at a key: the text of one below /kv/, of others the decoded JSON; nil if there is none. Below
--- /kv/, /res/, /node/ and /status/ only. At most 64 reads in one call of a hook.
---   get("/kv/team/a") --> "1"
---   get("/kv/none") --> nil

--- list(prefix [, limit]) -> entries
--- What is below a prefix, in the order of the keys: a list of {key, value}, at most 1000.
---   list("/kv/team/")[2].key --> "/kv/team/b"
---   #list("/kv/team/", 1) --> 1

--- count(prefix) -> number
--- How many keys there are below a prefix.
---   count("/kv/team/") --> 2

--- glob(pattern, text) -> boolean
--- Does the text match? * stands for any number of bytes, ? for one.
---   glob("team/*", "team/a") --> true
---   glob("a?c", "abbc") --> false

--- sorted_pairs(table) -> iterator
--- As pairs, which does the same in a policy: numbers first, then texts, each in their order, so that a decision is the
--- same each time.
---   select(2, sorted_pairs({ b = 1, a = 2 })()) --> 2

--- set_label(node_id, key, value)
--- A command: sets a label of a node.
---   set_label("n", "zone", "a").value --> "a"

--- drain(node_id)
--- A command: the node is to get nothing new and to lose what it has.
---   drain("n").value --> "drain"

--- activate(node_id)
--- A command: the node takes part again.
---   activate("n").node --> "n"

--- kv_put(key, value)
--- A command: sets one of the users' keys.
---   kv_put("a", "1").key --> "a"

--- kv_rm(key)
--- A command: removes one.
---   kv_rm("a").key --> "a"

--- event(text)
--- A command: adds an event.
---   event("it is Monday").text --> "it is Monday"

return {}
