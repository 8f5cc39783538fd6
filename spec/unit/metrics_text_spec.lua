local fake = require "spec.unit.fake"
fake.module("metrics", { limits = { 0.001, 0.5 } })
local metrics = require "symphony.metrics"
local text = require "symphony.metrics.text"

local function lines(...)
  return table.concat({ ... }, "\n") .. "\n"
end

describe("the text of metrics", function()
  it("has a family with its help, type and samples", function()
    local family = metrics.gauge("a_bytes", "What it is."):add(1, { b = "x", a = "y" }):add(2.5)
    assert.equal(lines("# HELP a_bytes What it is.", "# TYPE a_bytes gauge", 'a_bytes{a="y",b="x"} 1', "a_bytes 2.5"),
      text.render { family })
  end)

  it("escapes what help and labels have in them", function()
    local family = metrics.counter("a_total", 'one\\two\nthree "four"', 1, { l = 'a\\b\n"c"' })
    assert.equal(lines('# HELP a_total one\\\\two\\nthree "four"', "# TYPE a_total counter",
      'a_total{l="a\\\\b\\n\\"c\\""} 1'), text.render { family })
  end)

  it("shows labels that are not UTF-8 all the same", function()
    assert.equal('l="a?b"', text.labels { l = "a\xffb" })
    assert.equal('l="\xc3\xa4"', text.labels { l = "\xc3\xa4" })
    assert.equal('l="7"', text.labels { l = 7 })
    assert.equal("", text.labels {})
    assert.equal("", text.labels(nil))
  end)

  it("loses nothing of a number", function()
    for value, shown in pairs { [0] = "0", [-3] = "-3", [9007199254740993] = "9007199254740993", [0.1] = "0.1",
      [1e300] = "1e+300", [2.0] = "2", [1 / 3] = "0.33333333333333331", [math.huge] = "+Inf", [-math.huge] = "-Inf" } do
      assert.equal(shown, text.number(value))
      assert.equal(value, tonumber((shown:gsub("Inf", "1e999"))))
    end
    assert.equal("NaN", text.number(0 / 0))
    assert.equal("1" .. ("0"):rep(17), text.number(10 ^ 17 // 1 | 0))
  end)

  it("adds up the buckets of a histogram", function()
    local family = metrics.histogram("t_seconds", "Time.", { 2, 3, 4, sum = 9.25 }, { l = "v" })
    assert.equal(lines("# HELP t_seconds Time.", "# TYPE t_seconds histogram", 't_seconds_bucket{l="v",le="0.001"} 2',
      't_seconds_bucket{l="v",le="0.5"} 5', 't_seconds_bucket{l="v",le="+Inf"} 9', 't_seconds_sum{l="v"} 9.25',
      't_seconds_count{l="v"} 9'), text.render { family })
    local plain = text.render { metrics.histogram("t_seconds", "Time.", { 0, 0, 0, sum = 0.0 }) }
    assert.truthy(plain:find('\nt_seconds_bucket{le="+Inf"} 0\nt_seconds_sum 0\nt_seconds_count 0\n', 1, true), plain)
  end)

  it("brings together what several have of one name, and sorts", function()
    assert.equal(lines("# HELP a A.", "# TYPE a gauge", 'a{s="1"} 1', 'a{s="2"} 2', "# HELP b B.", "# TYPE b gauge",
      "b 0"),
      text.render { metrics.gauge("a", "A.", 1, { s = 1 }), metrics.gauge("b", "B.", false),
        metrics.gauge("a", "Another.", 2, { s = 2 }) })
    assert.error_matches(function()
      text.render { metrics.gauge("a", "A.", 1), metrics.counter("a", "A.", 1) }
    end, "a is a gauge and a counter")
  end)

  it("leaves out what has no sample", function()
    assert.equal("", text.render { metrics.gauge("a", "A."), metrics.gauge("b", "B.", nil) })
    assert.equal("", text.render {})
  end)
end)

describe("sources of metrics", function()
  local function scrape()
    local answer
    fake.run(function() answer = metrics.scrape() end)
    return answer
  end
  after_each(function()
    for _, name in ipairs { "one", "two" } do metrics.forget(name) end
  end)

  it("are asked at each scrape, and replaced by one of the same name", function()
    local n = 0
    metrics.source("one", function()
      n = n + 1
      return { metrics.gauge("n", "N.", n) }
    end)
    assert.truthy(scrape():find("\nn 1\n", 1, true))
    assert.truthy(scrape():find("\nn 2\n", 1, true))
    metrics.source("one", function() return { metrics.gauge("m", "M.", true) } end)
    local answer = scrape()
    assert.truthy(answer:find("# HELP m M.\n# TYPE m gauge\nm 1\n", 1, true), answer)
    assert.falsy(answer:find("\nn 2", 1, true))
    metrics.forget("one")
    metrics.forget("one")
    assert.falsy(scrape():find("\nm ", 1, true))
  end)

  it("that fail are left out, counted and told of once", function()
    metrics.source("one", function() error("no such figure") end)
    metrics.source("two", function() return { metrics.gauge("n", "N.", 1) } end)
    local before = #fake.logged
    scrape()
    local answer = scrape()
    assert.truthy(answer:find("\nn 1\n", 1, true), answer)
    assert.truthy(answer:find('\nsymphony_metrics_failures_total{source="one"} 2\n', 1, true), answer)
    assert.truthy(answer:find('\nsymphony_metrics_failures_total{source="two"} 0\n', 1, true), answer)
    assert.equal(before + 1, #fake.logged)
    assert.truthy(fake.logged[#fake.logged]:find("warn: metrics: one is left out: .*no such figure"))
  end)

  it("may have nothing, and may wait", function()
    metrics.source("one", function() return nil end)
    metrics.source("two", function()
      require("symphony.async").sleep(1)
      return { metrics.gauge("n", "N.", 1) }
    end)
    assert.truthy(scrape():find("\nn 1\n", 1, true))
  end)

  it("that name their figures wrongly are told so", function()
    for _, name in ipairs { "a-b", "", "1a", "a b", "\xc3\xa4" } do
      assert.has_error(function() metrics.gauge(name, "A.", 1) end, "not a name of a metric or label: " .. name)
      assert.has_error(function() metrics.gauge("a", "A.", 1, { [name] = "b" }) end,
        "not a name of a metric or label: " .. name)
    end
    assert.has_error(function() metrics.gauge("a", "A.", 1, { ["a:b"] = "c" }) end)
  end)
end)
